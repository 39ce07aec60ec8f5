import torch

from tokenizer.analysis import replace_tokens


@torch.no_grad()
def test_random_tokens_take_the_place_of_those_of_the_image(tokenizer):
    tokenizer.token_scale.fill_(0.25)
    image, noise = torch.rand(3, 16, 24) * 2 - 1, torch.randn(12, 6)
    tokens = tokenizer.encode(image[None]).mean
    later = torch.ones(13, 12, dtype=torch.bool).triu()
    frames = replace_tokens(tokenizer, image, noise, later)
    assert frames.shape == (13, 3, 16, 24)
    torch.testing.assert_close(frames[:1], tokenizer.decode_tokens(noise[None]))
    torch.testing.assert_close(frames[-1:], tokenizer.decode(tokens))
    one = replace_tokens(tokenizer, image, noise, torch.eye(12, dtype=torch.bool))[7:8]
    half = tokens.clone()
    half[:, 5:] = noise[5:] / 0.25
    torch.testing.assert_close(frames[5:6], tokenizer.decode(half))
    tokens[:, 7] = noise[7] / 0.25
    torch.testing.assert_close(one, tokenizer.decode(tokens))
