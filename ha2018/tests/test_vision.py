"""Properties of V: sizes, the floor of the KL term, independence of images, sampled latents."""

import pytest
import torch

from ha2018.vision import VAE, kl_loss, reconstruction_loss, sample_z

CONVOLUTIONS = {"enc_conv1": 1568, "enc_conv2": 32_832, "enc_conv3": 131_200, "enc_conv4": 524_544}
DECONVOLUTIONS = {"dec_deconv1": 3_276_928, "dec_deconv2": 204_864, "dec_deconv3": 73_760, "dec_deconv4": 3459}


@pytest.mark.parametrize(
    ("z_size", "total", "dense"),
    [
        (32, 4_348_547, {"enc_mu": 32_800, "enc_logvar": 32_800, "dec_fc": 33_792}),
        (64, 4_446_915, {"enc_mu": 65_600, "enc_logvar": 65_600, "dec_fc": 66_560}),
    ],
)
def test_parameter_counts_are_those_of_the_paper(z_size, total, dense):
    vae = VAE(z_size)
    counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in vae.named_children()}
    assert counts == CONVOLUTIONS | dense | DECONVOLUTIONS
    assert sum(p.numel() for p in vae.parameters()) == total


def test_the_kl_floor_acts_on_the_sum_of_an_image():
    """Image 0 is below 0.5 * Z in sum; image 1 is above it through one latent, and all of its latents feel it."""
    mu, logvar = torch.full((2, 8), 0.1), torch.zeros(2, 8)
    mu[1, 0] = 10
    mu.requires_grad_()
    logvar.requires_grad_()
    loss = kl_loss(mu, logvar, 0.5)
    loss.backward()
    assert loss.item() == pytest.approx((0.5 * 8 + 50 + 7 * 0.005) / 2)
    assert mu.grad is not None
    assert not mu.grad[0].any()
    torch.testing.assert_close(mu.grad[1], mu.detach()[1] / 2)


def test_losses_are_sums_over_an_image_and_means_over_the_batch():
    images = torch.zeros(3, 3, 64, 64)
    assert reconstruction_loss(images, images + 0.5).item() == pytest.approx(0.25 * 3 * 64 * 64)
    assert kl_loss(torch.ones(3, 8), torch.zeros(3, 8), 0.0).item() == pytest.approx(4)


def test_convolutions_in_bfloat16_change_latents_and_pixels_by_their_rounding_alone():
    torch.manual_seed(0)
    exact = VAE(8)
    rounded, images, noise = VAE(8, torch.bfloat16), torch.rand(4, 3, 64, 64), torch.randn(4, 8)
    rounded.load_state_dict(exact.state_dict())
    for ours, theirs in zip(rounded(images, noise), exact(images, noise), strict=True):
        assert ours.dtype == torch.float32
        # Four layers, each with inputs and weights of 8 bits.
        assert 0 < (ours - theirs).norm() / theirs.norm() < 4 * 2**-8


def test_images_of_a_batch_are_independent():
    torch.manual_seed(0)
    vae, images, noise = VAE(4).double(), torch.rand(3, 3, 64, 64).double(), torch.randn(3, 4).double()
    with torch.no_grad():
        before = vae(images, noise)
        images[1] = 1 - images[1]
        after = vae(images, noise)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new[[0, 2]], old[[0, 2]])
        assert not torch.allclose(new[1], old[1])
        assert new.shape[0] == 3
    assert after[0].shape == images.shape
    assert 0 < after[0].min() < after[0].max() < 1


@pytest.mark.parametrize("shape", [(2, 64, 64, 3), (3, 64, 64), (1, 3, 96, 96)])
def test_wrong_images_are_named_with_both_shapes(shape):
    with pytest.raises(ValueError, match=r"expected \[B, 3, 64, 64\], got ") as error:
        VAE(2).encode(torch.zeros(shape))
    assert str(list(shape)) in str(error.value)


def test_z_is_sampled_with_the_standard_deviation_of_logvar():
    noise = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0))
    z = sample_z(torch.tensor([3.0, -1.0]), torch.tensor([0.0, -2.0]), noise)
    torch.testing.assert_close(z.mean(0), torch.tensor([3.0, -1.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(z.std(0), torch.tensor([0.0, -1.0]).exp(), atol=0.01, rtol=0)
