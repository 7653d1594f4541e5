"""The text of the task: each dimension's question, the chat template, and SFT's completions."""

from collections.abc import Iterable, Sequence

from aesthetic_jax.data.answers import format_answer, option_letters
from aesthetic_jax.data.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, TURN_END, TURN_START

# The default system prompt of InternVL's original chat template; the -hf template has none.
INTERNVL_SYSTEM_PROMPT = (
    "你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)

# Each completes "Which of them ...?"
CRITERIA = {
    "appearance_deformation": "keep shape, colour, label and cap",
    "physical_shadow": "have a shadow that fits the light",
    "placement_layout": "stand upright and firmly",
    "extension_rationality": "are whole, with nothing grown on",
}


def question_text(dimension: str, num_candidates: int) -> str:
    """The question of one dimension: which candidates pass it, and the form of the answer."""
    last = option_letters(num_candidates)[-1]
    return (
        f"Image-1 is the original product, the others are A to {last}. "
        f"Which of them {CRITERIA[dimension]}? "
        "Reply as <think>reasoning</think><answer>letters or None</answer>."
    )


def prompt_text(
    question: str, tiles_per_image: Sequence[int], tokens_per_tile: int, system: str = ""
) -> str:
    """The whole prompt, up to the start of the assistant's turn.

    Args:
        question: the text after the images.
        tiles_per_image: number of tiles of each image, in order.
        tokens_per_tile: image tokens per tile.
        system: system prompt; "" for none (transformers' -hf template), INTERNVL_SYSTEM_PROMPT
            for the original template's.

    Returns:
        Byte for byte what InternVL's `internvl2_5` conversation template, or the -hf chat
        template, renders for "Image-1: <image>\\nImage-2: <image>\\n...{question}".
    """
    images = "".join(
        f"Image-{number}: {IMAGE_START}{IMAGE_CONTEXT * (tiles * tokens_per_tile)}{IMAGE_END}\n"
        for number, tiles in enumerate(tiles_per_image, start=1)
    )
    turns = f"{TURN_START}system\n{system}{TURN_END}\n" if system else ""
    return f"{turns}{TURN_START}user\n{images}{question}{TURN_END}\n{TURN_START}assistant\n"


def completion_text(reasoning: str, answer: Iterable[str], final_newline: bool = False) -> str:
    """The completion that SFT trains on, with its end-of-turn token.

    Args:
        reasoning: chain of thought, without tags.
        answer: letters of the candidates that pass.
        final_newline: whether to include the newline that the chat template puts after the turn.
            TRL's SFTTrainer trains on it; OpenGVLab's training masks it.
    """
    text = f"<think>{reasoning}</think><answer>{format_answer(answer)}</answer>{TURN_END}"
    return text + "\n" * final_newline
