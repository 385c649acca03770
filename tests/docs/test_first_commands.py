"""The first commands of each page run, on small data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import parametrize
from support.models import write_bert, write_image_tower, write_model, write_weights
from support.pages import PAGES, ROOT, blocks, commands
from support.training_runs import SMALL, run_superclip

SMALL_DEMO = {
    "--quick": "--quick --samples 320",
    "epoch_20": "epoch_1",
    "samples 2048": "samples 256",
}
SMALL_STUDY = (
    "--seeds 1 --set model=local-dir:tiny --set global_batch_size=16 --set 'samples=1 passes'"
)
# page: what is exchanged for less of the same, and what is there afterwards; of other pages nothing
EXPECTED = {
    "audit": (
        {
            "ViT-B-32 --pretrained laion2b_s34b_b79k": "local-dir:tiny",
            "--epochs 2": "--epochs 1 --workers 0",
            "--batch-size 64": "--batch-size 16",
        },
        ["audit/report.html", "audit/kept.csv", "logs/again/checkpoints/epoch_1.pt"],
    ),
    "benchmark": ({}, ["benchmark/benchmark.json"]),
    "captions": ({}, ["df.safetensors"]),
    "demo": ({"superclip demo": f"superclip {' '.join(SMALL)}"}, ["demo/demo.png"]),
    "evaluation": (SMALL_DEMO, ["demo/runs/clip_seed0/evaluation"]),
    "own-data": (
        {
            "ViT-B-32:laion2b_s34b_b79k": "tiny",
            "samples=5 passes": "samples=1 passes",
            "--seeds 3": "--seeds 1 --set global_batch_size=16 --jobs 2",
            "tf_efficientnet_lite0=efficientnet-lite0.pth": "test_efficientnet=image.pth",
            " --by-order": "",
            "--text all-MiniLM-L6-v2": "--text text",
            "--context-length 32": "--context-length 16",
            "--epochs 2": "--epochs 2 --workers 0",
            "--batch-size 64": "--batch-size 16",
            # tests/training/test_lora.py installs the plugin and trains with it
            "pip install ./examples/open_clip_lora": "",
            "--set flags.lora=16 ": "",
        },
        [
            "answer/study.png",
            "words/index.html",
            "audit/report.html",
            "my-clip/open_clip_config.json",
            "two-towers/open_clip_config.json",
            "report/report.html",
            "my-clip-of-one-run/README.md",
            "between.pt",
        ],
    ),
    "cluster": (
        {"superclip run demo/": "superclip run --set samples=512 demo/"},
        ["report/report.html"],
    ),
    "logging": (
        {"--epochs 2": "--epochs 1", "samples 2048": "samples 256"},
        ["logs/logged/tensorboard"],
    ),
    "shards": (
        {
            "{000000..000031}": "{000000..000001}",
            "--set data_samples=1600": f"{SMALL_STUDY} --set data_samples=32",
        },
        ["shards/left_out.csv", "answer-of-shards/study.csv"],
    ),
    "report": ({"--device cpu": "--device cpu --set samples=512"}, ["report/report.html"]),
    "slices": (
        {"--epochs 4": "--epochs 1", "samples 2048": "samples 256"},
        ["logs/slices/checkpoints/epoch_1.pt"],
    ),
    "tagging": (SMALL_DEMO, ["scene.png", "words"]),
    "weights": (
        SMALL_DEMO,
        ["plain/open_clip_config.json", "between.pt", "tuned/open_clip_config.json"],
    ),
}
ON_THE_DEMO = ("demo", "evaluation", "tagging", "weights")
ON_ITS_SCENES = ("captions", "cluster", "logging", "report", "slices")
WHOLE = ("own-data",)  # whose later blocks go on from the first
ON_OWN_DATA = ("own-data", "audit", "shards")
# the script by tests/cluster/test_horovod.py, the tests and the installation by whoever runs this
ELSEWHERE = (
    "horovod",
    "contributing",
    "install",
    "forgetting",  # an hour of training
    "openclip-main",  # needs a checkout
    "plugins",  # all of it by test_plugins.py
    "glossary",
    "upstream",  # no command
    "when",  # no command
    "dense",  # on smaller sets by tests/unit/test_dense.py
    "llava",  # begins with checkpoints of the paper's runs
)
EXIT_CODES = {"patching": (0, 1)}  # patched or not
HERE = sorted({Path(page).stem for page in PAGES if page.startswith("docs/")} - set(ELSEWHERE))


pytestmark = pytest.mark.usefixtures("forks")


@parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if page in EXPECTED else page for page in HERE],
)
def test_the_first_commands_of_a_page_run(page, tmp_path, tmp_path_factory, csv_data, request):
    exchanged, written = EXPECTED.get(page, ({}, []))
    first, *more = blocks(PAGES[f"docs/{page}.md"])
    command = "".join([first, *more]) if page in WHOLE else first
    command = re.sub(r" \\\n +", " ", command)  # a part to exchange may be in two lines
    for whole, less in exchanged.items():
        assert exchanged is SMALL_DEMO or whole in command
        command = command.replace(whole, less)
    if page in ON_THE_DEMO:
        (tmp_path / "demo").symlink_to(request.getfixturevalue("demo"))
    if page in ON_ITS_SCENES:
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo/data").symlink_to(request.getfixturevalue("demo") / "data")
    if page in ON_OWN_DATA:
        rows = [row.split("\t") for row in csv_data.read_text().splitlines()[1:]]
        (tmp_path / "pictures").symlink_to(csv_data.parent)
        lines = [f"pictures/{Path(picture).name},{words}\n" for picture, words in rows]
        for table, rows in {"pairs.csv": lines, "held-out.csv": lines[:16]}.items():
            (tmp_path / table).write_text("image,caption\n" + "".join(rows))
        tiny = write_model(tmp_path / "tiny", text={"width": 12})  # which trains in seconds
    if page == "own-data":
        write_weights(tiny)
        write_image_tower(tmp_path / "image.pth")
        write_bert(tmp_path / "text")
    recorded = commands(command, tmp_path_factory.mktemp("recorder"))
    folder, output = ROOT if page == "architecture" else tmp_path, tmp_path / "printed"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for program, *arguments in recorded:
        if program == "superclip":  # in a fork of this process
            code = run_superclip(arguments, output, folder)
        else:
            with open(output, "a") as file:
                command = [program, *arguments]
                code = subprocess.call(
                    command, cwd=folder, env=environment, stdout=file, stderr=file
                )
        assert code in EXIT_CODES.get(page, (0,)), output.read_text()[-4000:]
    assert [name for name in written if not (tmp_path / name).exists()] == []
