"""The recipes: complete, named after their contents, with the paper's
numbers."""

import re

import open_clip
from ruamel.yaml import YAML
from support import ROOT, cases, input_error, markdown_cells, parametrize, table
from support.training_runs import execute, failure

from openclip_superclip.checkpoints.model_configurations import register_small_models
from openclip_superclip.data.tables import is_table
from openclip_superclip.flags import Config, config_from
from openclip_superclip.plans.cost import estimate_cost
from openclip_superclip.plans.plan import make_run
from openclip_superclip.plans.recipe import FIELDS, KINDS, REQUIRED, WORDS, kind_of
from openclip_superclip.plans.recipe_files import read_recipe, shipped_recipes
from openclip_superclip.rendering import markdown_table
from openclip_superclip.trainer.train import check_command

RECIPES = {name: read_recipe(name) for name in shipped_recipes()}
DEMO = "demo/superclip_demo-model_8k_bs64"


def test_its_numbers_are_the_papers_and_every_run_of_the_paper_has_one():
    runs, tables = {}, (ROOT / "tests/support/paper.md").read_text()
    for source, shown in re.findall(r"^## (\w+ \d+).*\n\n((?:\|.*\n)+)", tables, re.MULTILINE):
        head, _, *rows = markdown_cells(shown)
        for name, *values in rows:
            runs.setdefault(name, {})[source] = dict(zip(head[1:], map(float, values), strict=True))
    expected = {}
    for name, sources in runs.items():
        values = {}
        # in the paper's order: what is printed comes before what is read
        # off
        for numbers in sources.values():
            values = numbers | values
        expected[f"datacomp1b/{name}"] = {
            "source": ", ".join(sources),
            "read_off": list(sources) == ["Figure 4"],
            "values": values,
        }
    assert {name: recipe.paper for name, recipe in RECIPES.items() if recipe.paper} == expected


def test_a_recipe_differs_from_its_plain_twin_only_in_the_class_loss():
    twins = {name: name.replace("/super", "/", 1) for name in RECIPES}
    pairs = [(name, plain) for name, plain in twins.items() if plain != name and plain in RECIPES]
    assert len(pairs) > 20
    for name, plain in pairs:
        ours, theirs = RECIPES[name].as_dict(), RECIPES[plain].as_dict()
        different = {key for key in ours | theirs if ours.get(key) != theirs.get(key)}
        assert different <= {"method", "superclip", *WORDS}, name
        assert (
            ours["superclip"]["weight"] > 0 == theirs.get("superclip", {"weight": 0})["weight"]
        ), name


def test_fine_tuning_starts_from_weights_that_openclip_knows():
    tuned = [recipe for name, recipe in RECIPES.items() if name.startswith("finetune/")]
    assert {(recipe.model, recipe.flags["pretrained"]) for recipe in tuned} <= set(
        open_clip.list_pretrained()
    )
    register_small_models()
    ours = {"local-dir:demo/model"}
    assert {recipe.model for recipe in RECIPES.values()} - ours <= set(open_clip.list_models())


def test_openclip_parses_the_values_of_the_recipe_from_the_command():
    for name, recipe in RECIPES.items():
        args = vars(check_command(make_run(recipe, nodes=1, gpus_per_node=8).openclip_arguments()))
        for field in "lr warmup beta1 beta2 eps wd precision seed model workers".split():
            assert args[field] == getattr(recipe, field), (name, field)
        assert args["lr_scheduler"] == recipe.schedule, name
        assert args.get("superclip_slices") == (
            None if is_table(recipe.shards) else recipe.slices
        ), name
        for flag, value in recipe.flags.items():
            assert args[flag.replace("-", "_")] == value, (name, flag)
        expected = Config(**recipe.superclip) if recipe.superclip else None
        assert config_from(args) == expected, name


@parametrize("nodes, gpus, gpu_batch_max", [(1, 4, None), (2, 8, 128)])
def test_the_samples_are_reached_exactly_in_slices_that_hold_enough(nodes, gpus, gpu_batch_max):
    for name, recipe in RECIPES.items():
        if is_table(recipe.shards):  # in whole passes, without the last, partial batch
            continue
        plan = make_run(recipe, nodes, gpus, gpu_batch_max=gpu_batch_max)
        assert (plan.warnings, plan.samples) == ([], recipe.samples), name
        assert plan.batch_size * plan.accum_freq * plan.world_size == recipe.global_batch_size, name
        assert plan.slice_samples * plan.num_slices == recipe.samples, name
        assert plan.slice_samples <= recipe.data_samples / recipe.slices, name


def test_a_slice_takes_at_most_an_hour_on_8_gpus_and_is_that_of_all_batch_sizes():
    slices = {}
    for name, recipe in RECIPES.items():
        # 12.8 G samples would take 200 days on 8 GPUs
        nodes, most = (8, 1.1) if "12.8b" in name else (1, 1.0)
        run = make_run(recipe, nodes, 8)
        if not recipe.model.startswith("local-dir:"):
            assert is_table(run.data) or estimate_cost(run)["slice_hours"] <= most, name
        numbers = recipe.slices, run.num_slices
        assert slices.setdefault(name.partition("_bs")[0], numbers) == numbers, name


@cases("reason, part, replacement", table("plans: odd recipes"))
def test_an_odd_recipe_is_refused_in_one_line_that_names_file_and_field(
    reason, part, replacement, tmp_path
):
    path, text = tmp_path / "edited.yaml", RECIPES[DEMO].text
    assert part in text
    path.write_text(text.replace(part, replacement))
    with input_error(f"^[^\n]*{re.escape(str(path))}[^\n]*{re.escape(reason)}[^\n]*$"):
        read_recipe(str(path))


def test_weights_that_openclip_would_ignore_beside_a_folder_are_refused():
    with input_error(r"clip would not start from a\.pt: use --set model=demo/"):
        read_recipe(DEMO, {"method": "clip", "flags.pretrained": "a.pt"})


def test_a_name_is_found_with_its_folder_or_alone_if_it_is_the_only_one():
    for name in (f"recipes/{DEMO}.yaml", DEMO.partition("/")[2]):
        assert read_recipe(name) == read_recipe(DEMO)
    with input_error(r"datacomp1b/.*, laion2b/.*, laion400m/"):
        read_recipe("superclip_vit-b-16_512m_bs16k")
    with input_error("similar: demo/superclip_demo-model_8k_bs64"):
        read_recipe("demo/superclip_demo-model_8k_bs640")


def test_set_changes_one_field_removes_a_flag_or_keeps_the_captions_and_the_text_says_it():
    changed = read_recipe(DEMO, {"lr": "+1E-3", "superclip.idf": "off", "shards": "{0..3}.tar"})
    assert (changed.lr, changed.superclip["idf"], changed.shards) == (1e-3, "off", "{0..3}.tar")
    assert changed.chosen["lr"] == changed.chosen["superclip.idf"] == "given with --set"
    ours, before = changed.as_dict(), read_recipe(DEMO).as_dict()
    different = {key for key in ours if ours[key] != before[key]}
    assert different == {"chosen", "lr", "shards", "superclip"}
    plain = read_recipe(
        DEMO, {"superclip.captions": "long", "superclip.long_caption": "a.txt", "method": "clip"}
    )
    assert plain.superclip == {"weight": 0, "captions": "long", "long_caption": "a.txt"}
    for nothing in ("", "null"):  # removes a flag
        recipe = read_recipe(
            "demo/superclip_demo-model_40k_bs32", {"flags.log-every-n-steps": nothing}
        )
        assert recipe.flags == {}


def test_a_seed_may_have_its_own_training_and_validation_data():
    data = {"shards": "train-{seed}.csv", "flags.val-data": "test-{seed}.csv", "seed": "7"}
    recipe = read_recipe(DEMO, data)
    assert (recipe.shards, recipe.flags["val-data"]) == ("train-7.csv", "test-7.csv")
    assert read_recipe(DEMO, {"samples": " 2 passes # two"}).samples == 2 * recipe.data_samples
    for text in ("{0..3}.tar", "my data #1/val.csv", "first try: again"):
        assert read_recipe(DEMO, {"flags.val-data": text}).flags["val-data"] == text


@cases("key, value, kept", table("plans: papers values"))
def test_set_leaves_the_papers_values_where_the_run_is_still_the_papers(key, value, kept):
    recipe = read_recipe("datacomp1b/superclip_vit-b-16_512m_bs1k", {key: str(value)})
    assert bool(recipe.paper) == kept


def test_the_text_of_a_recipe_is_the_recipe_again(tmp_path):
    changed = {
        "eps": "1e-8",
        "superclip.idf": "off",
        "shards": "{0..3}.tar",
        "samples": "1.5 passes",
    }
    for recipe in (*RECIPES.values(), read_recipe(DEMO, changed)):
        (tmp_path / "again.yaml").write_text(recipe.text)
        assert read_recipe(f"{tmp_path}/again.yaml").as_dict() == recipe.as_dict()
    assert "samples: 1.5 passes\n" in recipe.text


ODD_YAML = {
    "a percentage": ("samples: 50%", "samples is '50%'; expected a number, or passes: '20 passes'"),
    "a field of this package's files": ("like: other", "'like'; only files of this package have"),
    "a typing error": ("warmpu: 3", "no field 'warmpu'; did you mean warmup"),
    "names of the paper's scores": (
        "paper: {source: x, read_off: false, values: {1: 2}}",
        "paper is .*; expected source, read_off and values, by name",
    ),
}


@cases("change, error", ODD_YAML)
def test_odd_yaml_is_refused_in_one_line(change, error, tmp_path):
    field = change.partition(":")[0]
    values = YAML(typ="safe").load(RECIPES[DEMO].text)
    values.pop(field, None)
    with open(tmp_path / "odd.yaml", "w") as file:
        YAML().dump(values, file)
    text = (tmp_path / "odd.yaml").read_text()
    (tmp_path / "odd.yaml").write_text(f"{change}\n{text}")
    with input_error(rf"^{tmp_path}/odd\.yaml[^\n]*{error}[^\n]*$"):
        read_recipe(f"{tmp_path}/odd.yaml")


def listed(words=""):
    return {line.split()[0] for line in execute(f"plan {words}").splitlines()[1:]}


def test_without_the_name_of_one_recipe_a_plan_lists_those_with_all_words():
    assert listed() == RECIPES.keys()
    assert listed("CC12M bs4k") == {name for name in RECIPES if "cc12m" in name and "bs4k" in name}
    assert listed("own_data") == {name for name in RECIPES if name.startswith("own_data/")}
    assert "no recipe name contains cc12m and bs5k" in failure("plan cc12m bs5k")
    assert "there is no file and no recipe 'own_dta'; similar: own_data" in failure("plan own_dta")
    error = "--nodes: expected the name of one recipe before it; superclip plan coco lists"
    assert error in failure("plan coco --nodes 2")


def test_a_plan_prints_one_complete_recipe_as_yaml():
    for name in (DEMO, DEMO.partition("/")[2]):
        assert execute(f"plan {name} --yaml") == read_recipe(DEMO).text
    changed = read_recipe(DEMO, {"lr": "1e-4"})
    assert execute(f"plan {DEMO} --yaml --set lr=1e-4") == changed.text


def test_the_page_of_recipe_fields_matches_the_schema():
    rows = []
    for name, field in FIELDS.items():
        expected = f" ({field.metadata['expected']})" if field.metadata["expected"] else ""
        required = "yes" if name in REQUIRED else ""
        meaning = field.metadata["help"] + expected
        rows.append([f"`{name}`", KINDS[kind_of(name)], required, meaning])
    table = markdown_table(["field", "type", "required", "meaning"], rows)
    assert table in (ROOT / "docs/recipe-fields.md").read_text()
