"""Single-file checkpoints of the first Stable Diffusion release."""

from animatediff_core.checkpoints.single_file import clip_tokenizer


def test_the_word_pieces_are_clips_own():
    # ids as openai/clip-vit-large-patch14 gives them
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("Hello, World!").input_ids == [49406, 3306, 267, 1002, 256, 49407]
    assert tokenizer("a", padding="max_length").input_ids == [49406, 320] + 75 * [49407]
