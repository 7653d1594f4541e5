import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from aesthetic_jax.data import dataset
from aesthetic_jax.data.images import decode_image
from aesthetic_jax.data.manifest import DIMENSIONS, SPLITS, Sample, read_manifest, write_manifest
from aesthetic_jax.data.records import Record, open_records, open_splits
from aesthetic_jax.errors import UserError


def encode(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def odd_images():
    """One image of each kind, and whether its bytes are stored as they are."""
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8))
    wide = Image.fromarray(np.arange(126, dtype=np.uint16).reshape(9, 14) * 500)
    return [
        (encode(rgb, "JPEG"), True),
        (encode(rgb.convert("CMYK"), "JPEG"), True),
        (encode(wide, "PNG"), True),
        (encode(rgb.convert("P"), "PNG"), True),
        (encode(rgb, "WEBP"), True),
        (encode(rgb, "BMP"), False),
        (encode(wide, "TIFF"), False),
        (encode(rgb, "GIF"), False),
    ]


def make_manifest(folder, num=23):
    """Ids that no hash or sort keeps in order, 2 to 8 candidates, all kinds of images."""
    images = odd_images()
    for number, (data, _) in enumerate(images):
        (folder / f"{number}.img").write_bytes(data)
    samples = [
        Sample(
            id=f"{number * 7 % num}-x",
            split=("test", "train", "train")[number % 3],
            dimension=DIMENSIONS[number % 4],
            original=f"{number % len(images)}.img",
            candidates=tuple(f"{(number + k) % len(images)}.img" for k in range(1, 3 + number % 7)),
            answer=("A",) if number % 2 else (),
            reasoning=None if number % 5 else "Ein Schatten fällt\nnach links.",
            question="Which?" if number % 4 == 1 else None,
        )
        for number in range(num)
    ]
    path = str(folder / "manifest.jsonl")
    write_manifest(samples, path)
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory, make_dataset):
    folder = tmp_path_factory.mktemp("records")
    path = make_manifest(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "SHARD_BYTES", 5000)  # several shards
        make_dataset(folder, read_manifest(path), folder / "built")
    assert len(list((folder / "built").rglob("*-train.array_record*"))) > 2
    return path, str(folder / "built")


@pytest.mark.parametrize("split", ["train", "test"])
def test_both_sources_hold_the_same_in_the_manifests_order(sources, split):
    path, data_dir = sources
    samples = [sample for sample in read_manifest(path) if sample.split == split]
    manifest, built = open_records(path, None, split), open_records(None, data_dir, split)
    assert len(manifest) == len(built) == len(samples)
    assert manifest.ids() == built.ids() == [sample.id for sample in samples]
    assert (
        manifest.has_reasoning().tolist()
        == built.has_reasoning().tolist()
        == [bool(x.reasoning) for x in samples]
    )
    dimensions = [DIMENSIONS.index(sample.dimension) for sample in samples]
    assert manifest.dimensions().tolist() == built.dimensions().tolist() == dimensions
    options = [len(sample.candidates) for sample in samples]
    assert manifest.num_options().tolist() == built.num_options().tolist() == options
    stored_as_is = dict(odd_images())
    for index, sample in enumerate(samples):
        one, other = manifest[index], built[index]
        assert isinstance(other, Record)
        assert (one.id, one.answer, one.num_options) == (
            sample.id,
            frozenset(sample.answer),
            len(sample.candidates),
        )
        assert len(one.images) == len(other.images) == 1 + one.num_options
        for field in ("id", "dimension", "answer", "num_options", "reasoning", "question"):
            assert getattr(one, field) == getattr(other, field)
        for given, stored in zip(one.images, other.images, strict=True):
            assert (given == stored) == stored_as_is[given]
            np.testing.assert_array_equal(decode_image(given, "x"), decode_image(stored, "x"))


def test_a_description_is_the_same_in_both_sources(tmp_path, make_dataset):
    photo, _ = odd_images()[0]
    (tmp_path / "o.jpg").write_bytes(photo)
    told = dict(reasoning="A red jar.", question="What is it?")
    samples = [
        Sample("a", "train", DIMENSIONS[2], "o.jpg", (), (), **told),
        Sample("b", "train", DIMENSIONS[0], "o.jpg", ("o.jpg",) * 2, ("B",)),
        Sample("c", "train", DIMENSIONS[1], "o.jpg", (), (), **told),
    ]
    path = str(tmp_path / "manifest.jsonl")
    write_manifest(samples, path)
    make_dataset(tmp_path, read_manifest(path), tmp_path / "built")
    for records in (open_records(path), open_records(data_dir=str(tmp_path / "built"))):
        assert records[0] == Record("a", DIMENSIONS[2], (photo,), frozenset(), 0, **told)
        assert [len(record.images) for record in records] == [1, 3, 1]
        assert records.num_options().tolist() == [0, 2, 0]
        assert records.has_reasoning().tolist() == [True, False, True]
        assert records.image_name(0, 0).endswith(("o.jpg", "train/a/original"))
        assert records.has_descriptions()


def test_data_sets_of_older_versions_have_no_descriptions(sources, tmp_path):
    for file in os.scandir(f"{sources[1]}/screening/1.0.0"):
        (tmp_path / file.name).symlink_to(file.path)
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    del metadata["num_options"]
    (tmp_path / "metadata.json").unlink()
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    records = open_records(data_dir=str(tmp_path))
    assert not records.has_descriptions()
    with pytest.raises(UserError, match="lacks the samples' num_options; build the data set again"):
        records.num_options()


def test_random_access(sources):
    for records in (open_records(sources[0]), open_records(data_dir=sources[1])):
        assert records[3] == records[np.int64(3)] == records[3 - len(records)]
        for index in (len(records), -len(records) - 1):
            with pytest.raises(IndexError):
                records[index]
        assert len(list(records)) == len(records)


@pytest.mark.parametrize("kind", [0, 1])
def test_pickled_records_read_the_same(sources, kind):
    arguments = {"data_dir": sources[1]} if kind else {"manifest": sources[0]}
    records = open_records(**arguments)
    first = records[0]
    copy = pickle.loads(pickle.dumps(records))
    assert copy[0] == first
    assert repr(copy) == repr(records) == repr(open_records(**arguments))
    assert repr(records) != repr(open_records(**arguments, split="test"))
    assert "0x" not in repr(records)


def test_neither_tensorflow_nor_jax_is_needed_to_read(sources):
    script = (
        "import sys; from aesthetic_jax.data.records import open_records; "
        "open_records(data_dir=sys.argv[1])[0]; "
        "assert not {'tensorflow', 'jax', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, sources[1]], check=True)


def test_the_version_folder_is_a_data_dir_too(sources):
    inner = f"{sources[1]}/screening/1.0.0"
    assert open_records(data_dir=inner).ids() == open_records(data_dir=sources[1]).ids()


@pytest.mark.parametrize(
    "arguments", [{}, {"manifest": "x", "data_dir": "y"}, {"manifest": "", "data_dir": ""}]
)
def test_exactly_one_source_must_be_given(arguments):
    with pytest.raises(UserError, match=r"either data\.manifest or data\.data_dir"):
        open_records(**arguments)


def test_a_split_without_samples_is_named(sources):
    assert "validation" in SPLITS
    with pytest.raises(UserError, match="has no samples of split 'validation'"):
        open_records(sources[0], split="validation")
    with pytest.raises(
        UserError, match="has no samples of split 'validation'; choose one of train, test"
    ):
        open_records(data_dir=sources[1], split="validation")


def test_what_is_no_data_set_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="has no data set; make one with"):
            open_records(data_dir=str(folder))


@pytest.mark.parametrize("name", ["dataset_info.json", "metadata.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{}", None])
def test_damaged_data_sets_are_named(sources, tmp_path, name, content):
    for file in os.scandir(f"{sources[1]}/screening/1.0.0"):
        (tmp_path / file.name).symlink_to(file.path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=str(tmp_path)) as error:
        open_records(data_dir=str(tmp_path))
    assert "\n" not in str(error.value)


def test_an_image_that_has_gone_is_named(tmp_path):
    records = open_records(make_manifest(tmp_path))
    (tmp_path / "1.img").unlink()
    with pytest.raises(
        UserError, match=r"/1\.img: can't be read .*remove sample 7-x from .*manifest\.jsonl"
    ):
        records[0]


def test_all_splits_are_opened_at_once(sources):
    for splits in (open_splits(sources[0]), open_splits(data_dir=sources[1])):
        assert list(splits) == ["train", "test"]
    for kind, source in (("manifest", sources[0]), ("data_dir", sources[1])):
        for split, records in open_splits(**{kind: source}).items():
            assert repr(records) == repr(open_records(**{kind: source}, split=split))
            assert list(records) == list(open_records(**{kind: source}, split=split))
    for arguments in ({}, {"manifest": "x", "data_dir": "y"}):
        with pytest.raises(UserError, match=r"either data\.manifest or data\.data_dir"):
            open_splits(**arguments)
    with pytest.raises(UserError, match="has no data set; make one with"):
        open_splits(data_dir="nowhere")


def test_images_have_names(sources):
    sample = [sample for sample in read_manifest(sources[0]) if sample.split == "test"][2]
    files, built = open_splits(sources[0])["test"], open_splits(data_dir=sources[1])["test"]
    assert [files.image_name(2, i) for i in range(2)] == [
        f"{os.path.dirname(sources[0])}/{image}" for image in sample.images[:2]
    ]
    assert [built.image_name(2, i) for i in (0, 1, 8)] == [
        f"test/{sample.id}/{x}" for x in ("original", "A", "H")
    ]
