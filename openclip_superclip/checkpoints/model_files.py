"""Models that OpenCLIP does not bring: the small ones that ship here, and a JSON file that --model names."""

import json
from pathlib import Path

from ..errors import InputError
from ..files import PACKAGE, read_json

CONFIGURATIONS = PACKAGE / "model_configs"


def know_model(model: str | None, flag: str = "--model") -> None:
    """Makes OpenCLIP know the small models that ship, and `model` under its own name if it is a JSON file.

    Raises InputError for a file that is not there or is no configuration of a model. A configuration is OpenCLIP's
    (embed_dim, vision_cfg, text_cfg), alone or under `model_cfg` as in an open_clip_config.json.
    """
    from open_clip import factory

    known = factory._MODEL_CONFIGS  # add_model_config names a model after its file's stem alone, and the path is lost
    for file in CONFIGURATIONS.glob("*.json"):
        known.setdefault(file.stem, json.loads(file.read_text()))
    if model and model.endswith(".json") and ":" not in model:
        model_cfg, preprocess_cfg = read_model_file(Path(model), flag)
        if preprocess_cfg:
            raise InputError(
                f"{flag}: {model} holds a preprocess_cfg, which training reads in a folder alone: name it "
                "open_clip_config.json and give local-dir:FOLDER"
            )
        known[model] = known[model.replace("/", "-")] = model_cfg  # OpenCLIP asks for either


def read_model_file(file: Path, flag: str = "--model") -> tuple[dict, dict]:
    """Returns a file's model_cfg and preprocess_cfg; InputError, which names `flag`, if it has none."""
    content = read_json(file, flag=flag)
    outer = "model_cfg" in content
    model_cfg, preprocess_cfg = (content["model_cfg"], content.get("preprocess_cfg", {})) if outer else (content, {})
    check_configuration(model_cfg, preprocess_cfg, str(file), flag)
    return model_cfg, preprocess_cfg


def check_configuration(model_cfg: object, preprocess_cfg: object, model: str, flag: str) -> None:
    """Raises InputError for what is no configuration of a model."""
    expected = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    cfg = model_cfg if isinstance(model_cfg, dict) else {}
    wrong = [name for name, kind in expected.items() if not isinstance(cfg.get(name), kind)]
    if wrong or not isinstance(preprocess_cfg, dict):
        what = ", ".join(wrong) or "preprocess_cfg"
        raise InputError(
            f"{flag}: {model} is no configuration of a model: its {what} is missing or wrong; expected embed_dim, a "
            "number, and vision_cfg and text_cfg, both objects"
        )


def instead_of_passing_over(model: str) -> str | None:
    """Returns the --model with which stock OpenCLIP reads --pretrained, None if it does with `model` itself.

    With local-dir: and hf-hub: it ignores the flag and takes the weights that are there, or random ones.
    """
    schema, _, place = model.partition(":")
    instead = {"local-dir": f"{place}/open_clip_config.json", "hf-hub": "a file, its open_clip_config.json"}
    return instead.get(schema)
