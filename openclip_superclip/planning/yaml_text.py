"""YAML to and from plain values."""

import yaml


class _Loader(yaml.SafeLoader):
    """YAML without the silent rule that the last of two equal keys wins."""

    def construct_mapping(self, node, deep=False):
        mapping = super().construct_mapping(node, deep)  # refuses keys that are lists
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' stands twice", key_node.start_mark)
            seen.add(key)
        return mapping


def parse(text: str):
    """Returns the value of a YAML text; yaml.YAMLError where it is none, or where a key stands twice."""
    return yaml.load(text, Loader=_Loader)


def dump(values: dict) -> str:
    """Returns `values` as YAML, in their order."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
