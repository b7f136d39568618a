"""Which options go together."""

import pytest

from osdface.errors import UsageError
from pipelines.evaluation.wanted import Wanted, from_options


@pytest.mark.parametrize(
    "options",
    [
        {"model": "m", "data": "d"},
        {"model": "m", "data": "d", "split": "val", "against": "n", "require": "psnr"},
        {"restored": "r", "reference": "h"},
        {"no_reference": "r"},
        {"set": "lfw_test", "root": "r"},
        {"set": "lfw_test", "root": "r", "model": "m"},
        {"set": "lfw_test", "root": "r", "restored": "s"},
    ],
)
def test_what_goes_together(options):
    from_options(None, **options).check()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "give one of --data, --reference, --no-reference, --set: .* here none of them"),
        ({"model": "m"}, "here none of them"),
        ({"restored": "r"}, "here none of them"),
        ({"model": "m", "data": "d", "no_reference": "n"}, "here --data, --no-reference"),
        ({"data": "d"}, "--data goes with --model"),
        ({"reference": "h"}, "--reference goes with --restored"),
        ({"restored": "r", "reference": "h", "model": "m"}, "--reference does not go with --model"),
        ({"restored": "r", "data": "d", "model": "m"}, "--data does not go with --restored"),
        ({"no_reference": "n", "model": "m"}, "--no-reference does not go with --model"),
        ({"set": "lfw_test"}, "--set goes with --root"),
        ({"root": "r", "no_reference": "n"}, "--root goes with --set"),
        ({"restored": "r", "reference": "h", "against": "untrained"}, "--against goes with --model"),
        ({"restored": "r", "reference": "h", "split": "val"}, "--split goes with --data"),
        ({"set": "lfw_test", "root": "r", "restored": "s", "model": "m"}, "--restored does not go with --model"),
        ({"model": "m", "data": "d", "require": "psnr"}, "--require goes with --against"),
    ],
)
def test_what_does_not(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        from_options(None, **options).check()


def test_metrics_are_a_list_by_commas():
    assert from_options("psnr, ssim,", no_reference="n").metrics == ("psnr", "ssim")
    wanted = Wanted(model="m", data="d", against="n", metrics=("ssim",), require="psnr")
    with pytest.raises(UsageError, match="--require psnr: is none of --metrics ssim"):
        wanted.check()
