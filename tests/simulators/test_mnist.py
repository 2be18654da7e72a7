"""MNIST's own files: the images that were written come back, and anything else is refused in one line."""

import gzip
import struct

import numpy as np
import pytest
import torch

from core.errors import InputError
from simulators.mri.mnist import FILES, read_mnist


def idx(images, magic=0x803):
    return struct.pack(">4I", magic, *images.shape) + images.tobytes()


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("zipped", [False, True])
def test_images_come_back_padded_and_scaled(tmp_path, images, part, zipped):
    content = idx(images)
    (tmp_path / (FILES[part] + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    found = read_mnist(tmp_path, part)
    assert found.shape == (5, 1, 32, 32)
    assert found.dtype == torch.float32
    np.testing.assert_allclose((found[:, 0, 2:-2, 2:-2].numpy() + 1) * 127.5, images, atol=1e-4)
    border = found.clone()
    border[..., 2:-2, 2:-2] = -1
    assert bool((border == -1).all())
    assert float(found.min()) == -1.0
    assert float(found.max()) == 1.0


def test_the_parts_are_different_files(tmp_path, images):
    (tmp_path / FILES["train"]).write_bytes(idx(images))
    with pytest.raises(InputError, match=r"has neither t10k-images-idx3-ubyte nor t10k-images-idx3-ubyte\.gz"):
        read_mnist(tmp_path, "test")


def damaged(images):
    whole, labels = idx(images), struct.pack(">2I", 0x801, 5) + bytes(5)
    zipped = gzip.compress(whole)
    middle = len(zipped) // 2
    return {
        "short": (whole[:-1], "not an idx file"),
        "long": (whole + b"x", "not an idx file"),
        "empty": (b"", "not an idx file"),
        "labels": (labels, "not an idx file"),
        "magic": (idx(images, magic=0x801), "not an idx file"),
        "other size": (idx(images[:, :20, :20]), "not an idx file"),
        "cut.gz": (zipped[:middle], "not a whole gzip file"),
        "plain.gz": (whole, "not a whole gzip file"),
        "checksum.gz": (zipped[:-8] + bytes(8), "not a whole gzip file"),
        "stream.gz": (zipped[:10] + b"\xff" * 40 + zipped[50:], "not a whole gzip file"),
    }


@pytest.mark.parametrize("fault", damaged(np.zeros((1, 28, 28), np.uint8)))
def test_a_damaged_file_is_refused_in_one_line(tmp_path, images, fault):
    content, reason = damaged(images)[fault]
    path = tmp_path / (FILES["test"] + ".gz" * fault.endswith(".gz"))
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as refusal:
        read_mnist(tmp_path, "test")
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
