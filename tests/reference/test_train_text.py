"""`train --text`: a GPT that learns characters, equal to jax.grad's for its first steps, kept and sampled from."""

import json
from argparse import Namespace

import jax
import numpy as np
import pytest

import manual_backprop as mb
from reference import cli, text
from reference.cli import text_network, train_text
from reference.cli.files import BadInput

SMALL = ["--width", "16", "--heads", "2", "--layers", "1", "--length", "8", "--batch", "4", "--steps", "40"]
SMALL += ["--learning-rate", "0.02", "--sample", "30"]
SIZES = text_network.Sizes(8, 2, 1, 8)
CHARACTERS = "\ufffd\nabcdefgh"


@pytest.fixture(autouse=True)
def _as_a_user():
    """The command runs with JAX's defaults, not with the tests' strictness."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The alphabet in a row, again and again, and three characters that are rare."""
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("abcdefgh\n" * 60 + "ßßé" + "abcdefgh\n" * 60, encoding="utf-8")
    return str(path)


def run(capsys, *arguments):
    status = cli.main(["train", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_it_learns_what_it_reads_beside_jax_grad_and_goes_on_from_its_file(capsys, monkeypatch, tmp_path, words):
    """The curves are equal to a tenth of what the command asks for; a step takes no memory of the start's."""
    monkeypatch.setattr(train_text, "COMPARED", 10)
    monkeypatch.setattr(train_text, "CURVES_EQUAL", train_text.CURVES_EQUAL / 10)
    saved, picture = tmp_path / "net.npz", tmp_path / "curves.svg"
    status, out, err = run(capsys, "--text", words, *SMALL, "--save", str(saved), "--picture", str(picture))
    assert status == 0, out
    assert "steps: 50 of 50 by jax.grad" in err
    assert "975 characters of words.txt to train on, 108 held out\n9 different ones, and \ufffd for all others" in out
    assert "which come 3 times" in out
    assert "loss curves of the first 10 steps: equal to rounding" in out
    before, after = (float(part.split()[0]) for part in out.split("nats a character: ")[1].split(", ")[:2])
    assert abs(before - np.log(10)) < 1
    assert after < 0.7 * before
    sample = out.split("at temperature 0.8:\n")[1]
    assert len(sample) == 1 + 30 + 1  # from a new line on, and print's own
    drawing = picture.read_text()
    assert drawing.startswith("<?xml")

    status, again, _ = run(capsys, "--text", words, "--load", str(saved), "--steps", "0", "--sample", "30")
    assert status == 0
    assert again.split("at temperature 0.8:\n")[1] == sample
    assert f"held-out loss, nats a character: {after:.3f}, over 104 characters" in again
    status, other, _ = run(
        capsys, "--text", words, "--load", str(saved), "--steps", "0", "--seed", "1", "--sample", "30"
    )
    assert other.split("at temperature 0.8:\n")[1] != sample
    more = ["--load", str(saved), *SMALL[8:12], "--learning-rate", "0.02", "--sample", "0"]
    status, further, _ = run(capsys, "--text", words, *more)
    assert status == 0
    assert f"{after:.3f} before" in further
    assert "a sample" not in further


def test_a_run_that_parts_from_jax_grad_ends_with_one(capsys, monkeypatch, words):
    right = mb.value_and_grad

    def wrong(objective):
        def broken(*args, **given):
            J, g = right(objective)(*args, **given)
            return J, jax.tree.map(lambda leaf: leaf + 1e-3, g)

        return broken

    monkeypatch.setattr(mb, "value_and_grad", wrong)
    status, out, _ = run(capsys, "--text", words, *SMALL, "--steps", "5", "--sample", "0")
    assert status == 1
    assert "THEY PART" in out


def test_what_is_held_out_is_not_trained_on_and_every_character_of_it_is_predicted_once():
    corpus = text.corpus("".join(chr(0x4E00 + i % 20) for i in range(200)))
    assert (len(corpus.train), len(corpus.held)) == (180, 20)
    ids = np.arange(20)
    x, y = text.all_windows(ids, 6)
    np.testing.assert_array_equal(x, np.arange(18).reshape(3, 6))
    np.testing.assert_array_equal(y, x + 1)
    assert text.all_windows(np.arange(19), 6)[1].max() == 18
    assert text.all_windows(np.arange(18), 6)[0].shape == (2, 6)

    starts = np.random.default_rng(0).integers(0, len(corpus.train) - 6, 2000)
    x, y = text.windows(np.arange(180), starts, 6)
    assert (x.min(), y.max()) == (0, 179)


def test_a_vocabulary_has_what_is_not_rare_and_comes_from_what_is_not_held_out():
    words = "ab" * 40 + "c" * text.LEAST + "d" * (text.LEAST - 1) + "ab" * 3 + "e" * 10
    corpus = text.corpus(words)
    assert corpus.characters == "\ufffdabc"
    assert text.decoded(np.concatenate([corpus.train, corpus.held]), corpus.characters) == (
        words.replace("d", "\ufffd").replace("e", "\ufffd")
    )
    assert text.corpus(words, "\ufffde").characters == "\ufffde"


def test_pythons_own_text_is_half_a_million_characters_and_always_the_same():
    words = text.pythons_own()
    assert 300_000 < len(words) < 1_500_000
    assert words == text.pythons_own()
    assert len(text.vocabulary(words)) < 200


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--text", "{tmp}/none.txt"], "there is no file"),
        (["--text", "{tmp}"], "cannot read {tmp}: Is a directory"),
        (["--text", "{tmp}/empty.txt"], "is empty; it must hold a text"),
        (["--text", "{tmp}/latin.txt"], "is no text in UTF-8 (byte 3 is 0xe9): convert it first"),
        (["--text", "{words}", "--length", "108"], "108 of them held out, and a window of 108 needs 109"),
        (["--text", "{words}", "--length", "200"], "give a text of 2010 or more; a --length of 107 would do"),
        (["--text", "{words}", *SMALL, "--heads", "3"], "--width must be an even multiple of --heads"),
        (["--text", "{words}", *SMALL, "--heads", "16"], "got a width of 16 for 16 heads"),
        (["--text", "{words}", *SMALL, "--prompt", "aüz"], "--prompt has 'zü', which the network does not know"),
        (["--text", "--data", "a.npz", "--lam", "0"], "--data, --lam cannot go with --text"),
        (["--text", "--hidden", "8", "--optimizer", "sgd"], "--hidden, --optimizer cannot go with --text"),
        (["--text", "--steps", "0", "--batch", "4"], "--batch cannot go with --steps 0, which trains nothing"),
        (["--text", "--sample", "0", "--prompt", "a"], "--prompt cannot go with --sample 0, which writes nothing"),
        (["--text", "--prompt", ""], "--prompt must have a character at least"),
        (["--text", "--picture", "{tmp}/a.pdf"], "must end in .svg or .png"),
        (["--text", "{words}", "--save", "{words}"], "--save would write over the text in"),
        (["--text", "--save", "{tmp}/missing/net.npz"], "does not exist; make it first"),
        (["--width", "8", "--steps", "3"], "--width, --steps cannot go without --text"),
        (["--text", "{words}", "--load", "{tmp}/none.npz"], "there is no file"),
        (["--text", "{words}", "--load", "{words}"], "is no .npz file"),
    ],
)  # fmt: skip
def test_what_it_cannot_use_is_refused(capsys, tmp_path, words, arguments, says):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    status, out, err = run(capsys, *(word.format(tmp=tmp_path, words=words) for word in arguments))
    assert (status, out) == (2, "")
    assert err.startswith("manual-backprop train: ")
    assert says.format(tmp=tmp_path) in err


@pytest.mark.parametrize("arguments", [["--width", "0"], ["--steps", "-1"], ["--temperature", "-1"], ["--length", "x"]])
def test_bad_usage_ends_with_two(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--text", *arguments])
    assert ended.value.code == 2
    assert "must be" in capsys.readouterr().err


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    with jax.enable_x64(False):
        network = train_text._fresh(SIZES, CHARACTERS, 0)
        path = tmp_path_factory.mktemp("kept") / "net.npz"
        text_network.save_text_network(path, network)
        return network, path


def test_a_file_gives_back_the_network(kept):
    network, path = kept
    loaded = text_network.load_text_network(path)
    assert (loaded.sizes, loaded.characters, loaded.net) == (network.sizes, network.characters, network.net)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, network.params)
    assert {"description", "0.W"} < set(np.load(path))


def changed(path, **change):
    """The description with these entries."""
    return np.asarray(json.dumps(json.loads(str(np.load(path)["description"])) | change))


def test_a_file_that_was_tampered_with_is_refused(kept, tmp_path):
    _, path = kept
    arrays, other = dict(np.load(path)), tmp_path / "other.npz"
    sizes = {"width": 8, "heads": 2, "layers": 1, "length": 8}
    for change in (
        {"0.W": np.ones((5, 5), np.float32)},
        {"0.W": arrays["0.W"].astype(np.float64)},
        {"0.W": np.full_like(arrays["0.W"], np.nan)},
        {"0.W": None},
        {"description": None},
        {"description": np.asarray("{}")},
        {"description": np.asarray("[1]")},
        {"description": changed(path, characters=CHARACTERS[:-1] + "a")},
        {"description": changed(path, characters=list(CHARACTERS))},
        {"description": changed(path, characters="i" + CHARACTERS[1:])},
        {"description": changed(path, sizes=sizes | {"heads": 3})},
        {"description": changed(path, sizes=sizes | {"length": 0})},
        {"description": changed(path, sizes=sizes | {"length": "8"})},
        {"description": changed(path, sizes=sizes | {"depth": 1})},
    ):
        np.savez(other, **{k: v for k, v in (arrays | change).items() if v is not None})
        with pytest.raises(BadInput, match="is not a network that train --text --save wrote"):
            text_network.load_text_network(other)
    whole = path.read_bytes()
    other.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="is no .npz file"):
        text_network.load_text_network(other)


def test_each_kind_of_network_is_told_from_the_other(capsys, kept, tmp_path, words):
    _, path = kept
    status, _, err = run(capsys, "--load", str(path))
    assert status == 2
    assert "was trained with --text: give --text here too" in err
    status, _, err = run(capsys, "--text", words, "--load", str(path), "--width", "8")
    assert status == 2
    assert "--width cannot go with --load, which brings its own" in err
    np.savez(tmp_path / "table.npz", description=np.asarray('{"format": "manual-backprop/network/1"}'))
    status, _, err = run(capsys, "--text", words, "--load", str(tmp_path / "table.npz"))
    assert status == 2
    assert "has format 'manual-backprop/network/1'" in err


def test_a_sample_cannot_steer_a_terminal():
    network = train_text._fresh(SIZES, "\ufffd\n\x1b\x07\x08\x0b\x0c\x0e\x7f\x9b", 0)
    arguments = Namespace(seed=0, sample=40, temperature=2.0, prompt="\n")
    shown = train_text._sample(arguments, network)
    assert not {*network.characters[2:]} & {*shown}
    assert len(shown.split(":\n", 1)[1]) == 41
