"""Models that stock OpenCLIP opens, in a process that cannot import this
package."""

import os
import sys

import torch

from . import succeed

PROGRAM = """
import sys
sys.modules["openclip_superclip"] = None  # importing it fails
import open_clip, torch
from PIL import Image

torch.set_num_threads(1)
opened = {}
for name in sys.argv[1:]:
    model, preprocess = open_clip.create_model_from_pretrained(name)
    model.eval()
    image = preprocess(Image.open("image.png"))[None]
    text = open_clip.get_tokenizer(name)(%r)
    with torch.no_grad():
        opened[name] = [image, text, model.encode_image(image), model.encode_text(text)]
torch.save(opened, "opened.pt")
assert not [name for name in sys.modules if name.startswith("openclip_superclip.")]
"""


def opened_by_stock(names, texts, folder, **variables):
    """Pixels and features of `folder`/image.png, and tokens and features of
    the texts, by the name of a model: pixels, tokens, image features, text
    features."""
    command = [sys.executable, "-c", PROGRAM % texts, *names]
    succeed(command, cwd=folder, env=os.environ | variables)
    return torch.load(folder / "opened.pt", weights_only=True)
