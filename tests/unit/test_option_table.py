"""The table of what each option changes."""

import dataclasses

from openclip_superclip import option_table
from openclip_superclip.flags import Config, DataConfig
from openclip_superclip.option_table import EFFECTS, effect_of
from openclip_superclip.trainer.hook_calls import parse_args

# What OpenCLIP's trainer adds after parsing, and the record of a run.
ADDED = "checkpoint_path distributed local_rank log_level log_path rank save_logs tensorboard"
ADDED_LATER = "tensorboard_path train_sz val_sz wandb world_size"


def test_every_option_of_the_parsers_has_an_effect():
    parsed = vars(parse_args(["--superclip"], only_options=True)).keys()
    ours = {
        f"superclip_{field.name}"
        for config in (Config, DataConfig)
        for field in dataclasses.fields(config)
    }
    added = {*ADDED.split(), *ADDED_LATER.split()}
    assert sorted((parsed | ours | added) - EFFECTS.keys()) == []


def test_no_option_has_two_effects():
    names = [name for names in option_table._OPTIONS.values() for name in names.split()]
    assert len(names) == len(EFFECTS)


def test_an_unknown_option_may_change_the_weights():
    assert effect_of("of_another_plugin").changes_weights
