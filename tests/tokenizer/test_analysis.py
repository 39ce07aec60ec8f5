import pytest
import torch

from tokenizer.analysis import difference, influence_width, single_replacements, token_meaning


@pytest.fixture
def example(tokenizer):
    """A tokenizer, an image of 12 columns, its tokens, and random ones."""
    tokenizer.token_scale.fill_(0.25)
    image, noise = torch.rand(3, 16, 24) * 2 - 1, torch.randn(12, 6)
    with torch.no_grad():
        return tokenizer, image, tokenizer.encode(image[None]).mode(), noise


def test_frames_lead_from_random_tokens_to_the_reconstruction(example):
    tokenizer, image, tokens, noise = example
    frames = token_meaning(tokenizer, image, noise)
    assert frames.shape == (13, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(frames[:1], tokenizer.decode_tokens(noise[None]))
        torch.testing.assert_close(frames[-1:], tokenizer.decode(tokens))
        tokens[:, 5:] = noise[5:] / 0.25
        torch.testing.assert_close(frames[5:6], tokenizer.decode(tokens))


def test_each_image_has_one_random_token(example):
    tokenizer, image, tokens, noise = example
    found = single_replacements(tokenizer, image, noise)
    assert found.shape == (12, 3, 16, 24)
    with torch.no_grad():
        tokens[:, 7] = noise[7] / 0.25
        torch.testing.assert_close(found[7:8], tokenizer.decode(tokens))


def test_black_to_white_is_a_difference_of_one():
    black, white = torch.full((3, 2, 4), -1.0), torch.ones(3, 2, 4)
    assert torch.equal(difference(white, black), torch.ones(2, 4))
    one_colour = black.clone()
    one_colour[0, 1, 2] = 1
    expected = torch.zeros(2, 4)
    expected[1, 2] = 1 / 3
    torch.testing.assert_close(difference(one_colour, black), expected)


def test_width_counts_the_columns_above_the_share():
    profile = torch.tensor([[0.0, 1.0, 4.0, 0.4, 0.41], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert influence_width(profile, 0.1).tolist() == [3, 0]
    assert influence_width(profile, 0.3).tolist() == [1, 0]
