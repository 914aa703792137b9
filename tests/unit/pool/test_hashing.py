"""Near-duplicate groups: the same picture altered joins, another picture does not, and the search misses nothing."""

import base64
import io

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from scipy.fft import dct
from sklearn.datasets import load_digits

from alloop.pool import pixels
from alloop.pool.hashing import LENGTH, bits_apart, fingerprint, needed_size, parse
from alloop.pool.near_duplicates import NearDuplicateIndex

PLAIN = base64.urlsafe_b64encode(bytes([128] * 72)).decode()


def with_hash(value: int) -> str:
    """A fingerprint with a chosen pHash and one thumbnail for all, so that only the bits decide."""
    return f"{value:016x}{PLAIN}"


def photo(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Soft random blobs of color, about as detailed as a photo's coarse structure."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def grouped(one: Image.Image, other: Image.Image, distance: int = 3) -> bool:
    return NearDuplicateIndex(distance).group({1: fingerprint(one), 2: fingerprint(other)})[2][0] == 1


def gray_picture(number: int, side: int) -> np.ndarray:
    """Return gray noise, a ramp, a box, a checkerboard, or soft blobs, uint8 [side, side]."""
    draw = np.random.default_rng(number)
    y, x = np.indices((side, side))
    planes = [
        draw.integers(0, 256, (side, side)),
        (3 * x + y * y // 9 + draw.integers(0, 9)) % 256,
        draw.integers(1, 256) * ((abs(x - 11) < draw.integers(2, 9)) & (abs(y - 8) < draw.integers(2, 9))),
        ((x // draw.integers(3, 8) + y // 7) % 2) * draw.integers(1, 256),
        np.asarray(photo(number, (side, side)).convert("L")),
    ]
    return planes[number % len(planes)].astype(np.uint8)


def rgb(gray: np.ndarray) -> Image.Image:
    return Image.fromarray(gray).convert("RGB")


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_the_phash_is_that_of_imagehash_where_nothing_is_resized_but_by_whole_numbers(factor):
    """Gray pictures of 32 pixels, each pixel enlarged: averages of whole blocks are exact, whatever the filter."""
    n_compared = 0
    for number in range(60):
        gray = gray_picture(number, 32)

        text = fingerprint(rgb(gray.repeat(factor, axis=0).repeat(factor, axis=1)))

        assert len(text) == LENGTH == 112
        coefficients = dct(dct(gray.astype(float), axis=0), axis=1)[:8, :8].ravel()
        is_clear = np.abs(coefficients - np.median(coefficients)) > 40  # luma is rounded otherwise there
        ours, theirs = (np.array([*f"{int(found, 16):064b}"]) for found in (text[:16], str(imagehash.phash(rgb(gray)))))
        assert (ours == theirs)[is_clear].all(), number
        n_compared += is_clear.sum()
    assert n_compared > 60 * 40


def test_the_bits_of_a_plain_picture_do_not_depend_on_rounding():
    """All frequencies but the mean are exactly 0, and no bit says that 0 is above 0."""
    for level in (1, 37, 128, 255):
        assert fingerprint(Image.new("RGB", (50, 70), (level,) * 3))[:16] == "8000000000000000"
    assert fingerprint(Image.new("RGB", (50, 70)))[:16] == "0" * 16


@pytest.mark.parametrize("size", [(128, 171), (341, 256), (700, 500)])
def test_the_phash_of_photos_is_close_to_that_of_imagehash(size):
    """Fingerprints of older versions were imagehash's; at 6 bits they still find their copies."""
    apart = [bits_apart(fingerprint(photo(n, size)), str(imagehash.phash(photo(n, size)))) for n in range(40)]

    assert max(apart) <= 6
    assert np.mean(apart) < 2.5


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_large_photo_that_its_decoder_reduces_has_the_fingerprint_of_the_whole_one(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for seed in range(4):
        buffer = io.BytesIO()
        photo(seed, (2051, 1541)).save(buffer, "JPEG", quality=92, exif=exif)

        seen = pixels.look(buffer.getvalue(), needed=needed_size).reduced
        reduced = fingerprint(seen.image, seen.shown)
        whole = fingerprint(pixels.decode(buffer.getvalue())[0])

        assert seen.scale == 2
        assert bits_apart(reduced, whole) <= 2
        assert np.abs(np.diff(parse([reduced, whole])[1].astype(int), axis=0)).max() <= 2


def test_the_thumbnail_holds_luma_by_rows_then_chroma():
    # Black above white: 32 dark cells, then 32 bright ones, and no color (128) in Cb and Cr
    image = Image.new("RGB", (64, 64), "black")
    image.paste("white", (0, 32, 64, 64))

    thumbnail = base64.urlsafe_b64decode(fingerprint(image)[16:])

    assert thumbnail == bytes([0] * 32 + [255] * 32 + [128] * 8)


@pytest.mark.parametrize("seed", range(5))
def test_an_altered_copy_is_a_near_duplicate(seed):
    image = photo(seed)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)

    assert grouped(image, Image.open(buffer).convert("RGB"))
    assert grouped(image, image.resize((160, 120)))
    assert grouped(image, ImageEnhance.Brightness(image).enhance(0.9))


def test_different_pictures_are_not_near_duplicates():
    assert not any(grouped(photo(a), photo(b), distance=16) for a in range(6) for b in range(a))


def test_plain_images_are_told_apart_by_their_color():
    gray, lighter, red, blue = (Image.new("RGB", (50, 50), c) for c in ("#808080", "#909090", "#c00000", "#0000c0"))

    assert grouped(gray, gray.copy(), 16)
    assert not grouped(gray, lighter, 16)
    assert not grouped(red, blue, 16)


def test_a_picture_and_its_twin_in_another_color_are_told_apart():
    # Given the same luma in a bluish and in a reddish version
    luma = photo(3).convert("L").point(lambda level: 64 + level // 2)
    neutral, tinted = Image.new("L", luma.size, 128), Image.new("L", luma.size, 150)
    bluish = Image.merge("YCbCr", (luma, tinted, neutral)).convert("RGB")
    reddish = Image.merge("YCbCr", (luma, neutral, tinted)).convert("RGB")

    assert grouped(bluish, bluish.resize((160, 120)), 16)
    assert not grouped(bluish, reddish, 16)


@pytest.mark.parametrize("size", [8, 64])
def test_no_two_handwritten_digits_are_near_duplicates(size):
    index = NearDuplicateIndex(3)
    pictures = [Image.fromarray((gray * 255 / 16).astype(np.uint8)).convert("RGB") for gray in load_digits().images]
    resized = [picture.resize((size, size), Image.Resampling.NEAREST) for picture in pictures]

    index.group({position: fingerprint(picture) for position, picture in enumerate(resized)})

    assert len(index) == 1797


@settings(max_examples=150, deadline=None)
@given(
    distance=st.integers(0, 16),
    leaders=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40),
    flips=st.lists(st.integers(0, 63), max_size=18),
    pick=st.integers(0, 39),
)
def test_the_index_finds_what_comparing_with_every_leader_finds(distance, leaders, flips, pick):
    # Given an asked hash some random bits away from one of the leaders
    asked = leaders[pick % len(leaders)]
    for bit in flips:
        asked ^= 1 << bit
    index = NearDuplicateIndex(distance)
    index.add_leaders({image_id: with_hash(value) for image_id, value in enumerate(leaders)})

    near = [((value ^ asked).bit_count(), image_id) for image_id, value in enumerate(leaders)]
    bits, image_id = min(near)
    expected = (image_id, bits) if bits <= distance else (99, 0)

    assert index.group({99: with_hash(asked)}) == {99: expected}


def test_of_two_leaders_equally_near_the_smaller_id_wins_in_any_order():
    for ids in [(7, 3), (3, 7)]:
        index = NearDuplicateIndex(2)
        index.add_leaders({image_id: with_hash({7: 0b01, 3: 0b10}[image_id]) for image_id in ids})

        assert index.group({9: with_hash(0)}) == {9: (3, 1)}


def test_groups_do_not_chain():
    # 0 and 3 bits: together; 3 and 6 bits are near each other, but a member attracts nobody
    index = NearDuplicateIndex(3)

    found = index.group({1: with_hash(0b000000), 2: with_hash(0b000111), 3: with_hash(0b111111)})

    assert found == {1: (1, 0), 2: (1, 3), 3: (3, 0)}


def test_many_at_once_join_the_groups_that_they_join_one_by_one():
    generator = np.random.default_rng(0)
    scenes = generator.integers(0, 2**63, 40).tolist()
    flipped = [generator.choice(64, generator.integers(0, 5), replace=False).tolist() for _ in range(600)]
    masks = [sum(1 << bit for bit in bits) for bits in flipped]
    phashes = {n: with_hash(scenes[n % 40] ^ mask) for n, mask in enumerate(masks)}
    index, alone = NearDuplicateIndex(4), {}

    for image_id, phash in phashes.items():
        alone |= index.group({image_id: phash})

    assert NearDuplicateIndex(4).group(phashes) == alone
    assert 40 < len(index) < 400


@pytest.mark.parametrize("distance", [0, 3, 8])
def test_a_search_looks_at_few_of_many_leaders(distance):
    index = NearDuplicateIndex(distance)
    values = np.random.default_rng(0).integers(0, 2**63, 20_000, dtype=np.uint64) * 2
    index.add_leaders({image_id: with_hash(value) for image_id, value in enumerate(values.tolist())})

    pairs = [asked for asked, _ in index._candidates(values[:20])]
    looked_at = np.bincount(np.concatenate(pairs), minlength=20)

    assert looked_at.max() < len(values) / 10
    assert np.mean(looked_at) < len(values) / 25


def test_a_hash_of_another_length_is_refused():
    with pytest.raises(ValueError, match="112 characters, this one 16"):
        NearDuplicateIndex(3).group({1: "0" * 16})
