"""The suites' data sets and the average of 38; does not need CLIP_benchmark, so that reports
work without it."""

RETRIEVAL = ["mscoco_captions", "flickr30k"]
VTAB_PLUS = [  # clip_benchmark.datasets.builder.dataset_collection["vtab+"]
    "imagenet1k",
    "imagenetv2",
    "imagenet_sketch",
    "imagenet-a",
    "imagenet-r",
    "objectnet",
    "fer2013",
    "voc2007",
    "voc2007_multilabel",
    "sun397",
    "cars",
    "fgvc_aircraft",
    "mnist",
    "stl10",
    "gtsrb",
    "country211",
    "renderedsst2",
    "vtab/caltech101",
    "vtab/cifar10",
    "vtab/cifar100",
    "vtab/clevr_count_all",
    "vtab/clevr_closest_object_distance",
    "vtab/diabetic_retinopathy",
    "vtab/dmlab",
    "vtab/dsprites_label_orientation",
    "vtab/dsprites_label_x_position",
    "vtab/dtd",
    "vtab/eurosat",
    "vtab/kitti_closest_vehicle_distance",
    "vtab/flowers",
    "vtab/pets",
    "vtab/pcam",
    "vtab/resisc45",
    "vtab/smallnorb_label_azimuth",
    "vtab/smallnorb_label_elevation",
    "vtab/svhn",
]
# The data sets for classification in CLIP_benchmark's own list, benchmark/webdatasets.txt. The
# paper does not name its
# 38: its models' averages are within two points of what CLIP_benchmark publishes for these, and 6
# to 11 off DataComp's.
THE_38 = [*VTAB_PLUS, "imagenet-o", "vtab/dsprites_label_y_position"]
SUITES = {  # task and default data sets
    "zeroshot": ("zeroshot_classification", THE_38),
    "retrieval": ("zeroshot_retrieval", RETRIEVAL),
    "probe": ("linear_probe", ["imagenet1k"]),
    "dense": ("dense", ["pascal_voc", "ade20k", "nyuv2"]),  # the data set determines the task
}


def averaged(models: list[list[dict]]) -> dict[str, list[list[tuple[dict, str]]]]:
    """Returns the contents of the average by row label: for each model the same data sets' results
    and measures.

    These are the data sets of the 38 that all models, given by their results, have in common, at
    least two.
    """
    models_parts = [_zero_shot_scores(records) for records in models]
    shared = [name for name in THE_38 if all(name in parts for parts in models_parts)]
    if len(shared) < 2:
        return {}
    label = "average of 38" if len(shared) == len(THE_38) else f"average of {len(shared)} of the 38"
    return {label: [[parts[name] for name in shared] for parts in models_parts]}


def _zero_shot_scores(records: list[dict]) -> dict[str, tuple[dict, str]]:
    """Returns each zero-shot result with the name of its accuracy or mean average precision, by
    data set."""
    parts = {}
    for record in records:
        for measure in ("mean_average_precision", "acc1"):
            is_measured = record["metrics"].get(measure) is not None
            if is_measured and record.get("task") == "zeroshot_classification":
                parts[record.get("dataset")] = (record, measure)
    return parts
