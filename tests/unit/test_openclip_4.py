"""What is refused or set for OpenCLIP 4, whose options a namespace holds
here."""

import argparse

import torch
from support import cases, input_error, parametrize, table

from openclip_superclip.checkpoints.resume import check_kind
from openclip_superclip.checkpoints.weights import read_checkpoint
from openclip_superclip.plugin import Plugin
from openclip_superclip.trainer.checks import check_has_data, check_options
from openclip_superclip.trainer.parsed_options import read

# options of OpenCLIP 4, --superclip-captions, --superclip-slices: what the
# one line says


@cases("options, captions, slices, reason", table("losses: refused openclip 4"))
def test_flags_that_do_not_work_with_openclip_4_are_refused(
    options, captions, slices, reason, parse_args
):
    args = parse_args("--dataset-type synthetic")
    vars(args).update(
        options, only_options=True, dataset_type=options.get("dataset_type", "webdataset")
    )
    if captions is not None:
        vars(args).update(superclip=True, superclip_captions=captions)
        vars(args).update({} if captions == "short" else {"superclip_long_caption": "long.txt"})
    if slices is not None:
        args.superclip_slices = slices
    with input_error(f"^[^\n]*{reason}[^\n]*$"):
        check_options(read(args))


@parametrize("options", [{"dataset_type": "synthetic-audio"}, {"audio_zeroshot_dataset": "esc50"}])
def test_audio_is_data_too(options, parse_args):
    args = argparse.Namespace(**vars(parse_args()) | options)
    check_has_data(args)


@cases("options, expected", table("losses: muon"))
def test_muon_leaves_the_class_head_to_its_fallback(options, expected, parse_args, tmp_path):
    args = parse_args(f"--dataset-type synthetic --train-num-samples 1 --logs {tmp_path}")
    given = {"opt": "timm/nadamuon", "opt_fallback_list": None, "opt_kwargs": {}, "superclip": True}
    vars(args).update(given | options)
    Plugin().open_clip_check_options(args)
    assert args.opt_fallback_list == expected


@cases("content, with_ddp, has_tasks, reason", table("runs: kinds of checkpoints"))
def test_a_checkpoint_of_another_kind_of_run_is_not_resumed(
    content, with_ddp, has_tasks, reason, tmp_path
):
    file = tmp_path / "epoch_1.pt"
    torch.save({"epoch": 1, "state_dict": {"module.logit_scale": torch.zeros(())}, **content}, file)
    other_ddp = None if with_ddp is None else True
    options = {"model": "ViT-B-32", "with_head": False}
    checkpoint = read_checkpoint(file)
    check_kind(checkpoint, with_ddp=other_ddp, has_tasks=bool(content), **options)
    with input_error(f"^--resume: [^\n]*epoch_1.pt is {reason}[^\n]*--pretrained [^\n]*$"):
        check_kind(checkpoint, with_ddp=with_ddp, has_tasks=has_tasks, **options)
