"""Parts of scripts/study.sh: makes questions, prints what models solve, reports the results.

    python scripts/study.py --step=questions --results=FOLDER --questions=pool
    python scripts/study.py --step=calibration --results=FOLDER --questions=pool
    python scripts/study.py --step=report --results=FOLDER

Steps:
  questions    renders FOLDER/QUESTIONS: manifest, images, scenes.jsonl, types.json
  calibration  prints how often the SFT models solve each type of these questions
  report       prints the comparison of all finished runs; writes study.json, study.txt and
               curves.png to FOLDER
"""

import os
import pathlib
import sys

from absl import flags
from command_line import fail, parse_flags
from studylib.calibration import format_calibration, measure
from studylib.pool import SETS, plan_questions, write_questions
from studylib.report import write_report

from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_enum(
    "step", "report", ["questions", "calibration", "report"], "what to do", flag_values=FLAGS
)
flags.DEFINE_string("results", "study_results", "folder of the study", flag_values=FLAGS)
flags.DEFINE_enum("questions", "pool", list(SETS), "set of questions", flag_values=FLAGS)
flags.DEFINE_integer(
    "workers", os.cpu_count(), "processes that render", lower_bound=1, flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    """Does the step that the flags choose."""
    parse_flags(FLAGS, argv, __doc__)
    results = pathlib.Path(FLAGS.results)
    try:
        if FLAGS.step == "questions":
            questions = plan_questions(*SETS[FLAGS.questions])
            write_questions(results / FLAGS.questions, questions, FLAGS.workers)
        elif FLAGS.step == "calibration":
            print(format_calibration(measure(results, FLAGS.questions)))
        else:
            print(write_report(results))
    except (UserError, FileNotFoundError) as error:
        fail(argv, error)


if __name__ == "__main__":
    main(sys.argv)
