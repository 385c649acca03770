"""The suites' data sets and averages over them; does not need CLIP_benchmark, so that reports work without it."""

import statistics

DATACOMP_CLASSIFICATION = [
    "imagenet1k", "imagenetv2", "imagenet_sketch", "imagenet-a", "imagenet-o", "imagenet-r", "objectnet",
    "vtab/cifar10", "country211", "fgvc_aircraft", "food101", "gtsrb", "mnist", "voc2007", "renderedsst2", "cars",
    "stl10", "sun397", "vtab/caltech101", "vtab/cifar100", "vtab/clevr_count_all",
    "vtab/clevr_closest_object_distance", "vtab/dtd", "vtab/eurosat", "vtab/kitti_closest_vehicle_distance",
    "vtab/flowers", "vtab/pets", "vtab/pcam", "vtab/resisc45", "vtab/svhn",
]  # fmt: skip


RETRIEVAL = ["mscoco_captions", "flickr30k"]
SUGAR_CREPE = [  # clip_benchmark.datasets.builder.dataset_collection["sugar_crepe"]
    f"sugar_crepe/{kind}"
    for kind in ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
]
VTAB_PLUS = [  # clip_benchmark.datasets.builder.dataset_collection["vtab+"]
    "imagenet1k", "imagenetv2", "imagenet_sketch", "imagenet-a", "imagenet-r", "objectnet", "fer2013", "voc2007",
    "voc2007_multilabel", "sun397", "cars", "fgvc_aircraft", "mnist", "stl10", "gtsrb", "country211", "renderedsst2",
    "vtab/caltech101", "vtab/cifar10", "vtab/cifar100", "vtab/clevr_count_all", "vtab/clevr_closest_object_distance",
    "vtab/diabetic_retinopathy", "vtab/dmlab", "vtab/dsprites_label_orientation", "vtab/dsprites_label_x_position",
    "vtab/dtd", "vtab/eurosat", "vtab/kitti_closest_vehicle_distance", "vtab/flowers", "vtab/pets", "vtab/pcam",
    "vtab/resisc45", "vtab/smallnorb_label_azimuth", "vtab/smallnorb_label_elevation", "vtab/svhn",
]  # fmt: skip


# The data sets for classification in CLIP_benchmark's own list, benchmark/webdatasets.txt. The paper does not name its
# 38: its models' averages lie within two points of what CLIP_benchmark publishes for these, and 6 to 11 off DataComp's.
THE_38 = [*VTAB_PLUS, "imagenet-o", "vtab/dsprites_label_y_position"]
SUITES = {
    "zeroshot": ("zeroshot_classification", THE_38),
    "datacomp": ("zeroshot_classification", DATACOMP_CLASSIFICATION),
    "retrieval": ("zeroshot_retrieval", RETRIEVAL),
    "probe": ("linear_probe", ["imagenet1k"]),
    "fewshot": ("few_shot", ["imagenet1k"]),
    "knn": ("knn", ["imagenet1k"]),
    "compositional": ("image_caption_selection", [*SUGAR_CREPE, "winoground"]),
    "dense": ("dense", ["pascal_voc", "ade20k", "nyuv2"]),  # the data set determines the task
}

DATACOMP_BY_CLASS = {"fgvc_aircraft", "vtab/caltech101", "vtab/flowers", "vtab/pets"}  # mean recall of the classes
DATACOMP = [*DATACOMP_CLASSIFICATION, *RETRIEVAL]


def measures(record: dict, by_class: bool = False) -> list[str]:
    """Returns the measures of a result whose mean enters an average: accuracy, mean average precision, or both R@1.

    Args:
        record: the content of its JSON file, with CLIP_benchmark's names of task and metrics.
        by_class: whether to use mean per-class recall instead of accuracy.
    """
    metrics, task = record["metrics"], record.get("task")
    if task == "zeroshot_retrieval":
        sides = [f"{side}_retrieval_recall@1" for side in ("image", "text")]
        return sides if None not in map(metrics.get, sides) else []
    if task != "zeroshot_classification":
        return []
    accuracy = "mean_per_class_recall" if by_class else "acc1"
    return next(([name] for name in (accuracy, "mean_average_precision") if metrics.get(name) is not None), [])


def averaged(models: list[list[dict]]) -> dict[str, list[list[tuple[dict, list[str]]]]]:
    """Returns the contents of each average by row label: for each model the same data sets' results and measures.

    These are the data sets that all models have in common, at least two.

    Args:
        models: the results of each model, as in their JSON files.
    """
    rows = {}
    for names, by_class, whole, some in (
        (THE_38, set(), "average of 38", "average of {} of the 38"),
        (DATACOMP, DATACOMP_BY_CLASS, "datacomp38 (32 of 38)", "datacomp38 ({} of 38)"),
    ):
        found = [_parts(records, names, by_class) for records in models]
        shared = [name for name in names if all(name in parts for parts in found)]
        if len(shared) > 1:
            label = whole if len(shared) == len(names) else some.format(len(shared))
            rows[label] = [[parts[name] for name in shared] for parts in found]
    return rows


def averages(models: list[list[dict]]) -> dict[str, list[float]]:
    """Returns each average by row label, one value per model, over the data sets that all models have in common."""
    return {
        label: [
            statistics.mean(statistics.mean(record["metrics"][name] for name in names) for record, names in parts)
            for parts in found
        ]
        for label, found in averaged(models).items()
    }


def _parts(records: list[dict], names: list[str], by_class: set[str]) -> dict[str, tuple[dict, list[str]]]:
    found = {}
    for record in records:
        name = record.get("dataset")
        if name in names and (shown := measures(record, name in by_class)):
            found[name] = record, shown
    return found
