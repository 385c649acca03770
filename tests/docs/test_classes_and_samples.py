"""The scenes of the study classes_and_samples."""

from support.pages import script

study = script("studies/classes_and_samples/make_scenes.py")


def test_scenes_show_objects_of_their_seed_alone_and_captions_name_all_of_them():
    names = study.few_objects(210)
    for index in range(40):
        scene = study.scene(names, 210, index)
        assert {*scene.captions["long"].split(", ")} == {*scene.objects} <= {*names}
