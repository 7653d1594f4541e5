"""Turns a Hugging Face checkpoint into one of ours, or one of ours into a Hugging Face checkpoint or a PEFT adapter.

aesthetic-jax convert --from_hf=DIR --to=DIR [--dtype=bfloat16]
aesthetic-jax convert --from=DIR --to_hf=DIR [--source=DIR] [--dtype=bfloat16]
aesthetic-jax convert --from=DIR --to_peft=DIR [--source=DIR] [--dtype=bfloat16]
"""

from absl import flags

from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("from_hf", None, "Hugging Face checkpoint to read, OpenGVLab's or -hf", flag_values=FLAGS)
flags.DEFINE_string("to", None, "run directory to make of it", flag_values=FLAGS)
flags.DEFINE_string("from", None, "run directory (its newest checkpoint), or one of its checkpoints", flag_values=FLAGS)
flags.DEFINE_string("to_hf", None, "Hugging Face checkpoint to make of it, -hf", flag_values=FLAGS)
flags.DEFINE_string("to_peft", None, "PEFT adapter to make of its LoRA matrices", flag_values=FLAGS)
flags.DEFINE_string(
    "source",
    None,
    "with --to_hf: where the tokenizer and processor files come from, the run's own when left out; with --to_peft: the "
    "base checkpoint that the adapter names",
    flag_values=FLAGS,
)
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "what the parameters are stored in", flag_values=FLAGS)


def main(arguments: flags.FlagValues) -> None:
    """Runs the command."""
    given = {name: arguments[name].value for name in ("from_hf", "to", "from", "to_hf", "to_peft", "source")}
    pair = {name for name, value in given.items() if value} - {"source"}
    if pair not in ({"from_hf", "to"}, {"from", "to_hf"}, {"from", "to_peft"}):
        raise UserError("convert takes --from_hf=DIR with --to=DIR, or --from=DIR with --to_hf=DIR or --to_peft=DIR")
    if pair == {"from_hf", "to"}:
        if given["source"]:
            raise UserError("--source goes with --from alone; with --from_hf the checkpoint's own tokenizer is taken")
        _from_hugging_face(given["from_hf"], given["to"], arguments.dtype)
    else:
        _export(given["from"], given["to_hf"], given["to_peft"], given["source"], arguments.dtype)


def _from_hugging_face(source: str, target: str, dtype: str) -> None:
    from aesthetic_jax.checkpoints import huggingface, training

    huggingface.check_free(target)
    config = huggingface.read_config(source)
    parameters = huggingface.load_parameters(source, config, dtype)
    training.save_model(target, config, parameters, source)
    print(target)


def _export(run: str, to_hf: str | None, to_peft: str | None, source: str | None, dtype: str) -> None:
    import jax

    from aesthetic_jax.checkpoints import huggingface, peft, training

    huggingface.check_free(to_hf or to_peft)
    if to_peft and not training.read_architecture(str(training.run_directory(run))).lora_rank:
        raise UserError(f"--from: {run} was trained without LoRA, so there is no adapter; export it with --to_hf")
    config, parameters, tokenizer, _ = training.load_model(run)
    parameters = jax.tree.map(lambda x: x.astype(dtype), parameters)
    if to_hf:
        huggingface.save_parameters(parameters, config, to_hf, source or tokenizer)
    else:
        peft.save_adapter(parameters, config, to_peft, source or "")
    print(to_hf or to_peft)
