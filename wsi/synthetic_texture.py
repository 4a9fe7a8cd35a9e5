"""Paint synthetic slides: an endless H&E texture for each tissue class of a patient, and tiles made of these."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
import numpy.typing as npt
import scipy.fft

Pixels = npt.NDArray[np.uint8]
Field = npt.NDArray[np.float32]
"""A (period, period) plane of stain amounts or noise that continues at its opposite edge."""

GLASS_GREY = 244.0
"""Mean grey value of the empty slide, as brightfield scanners white-balance it."""


@dataclass(frozen=True, slots=True)
class Stain:
    """Hold how one patient's tissue took up haematoxylin and eosin.

    Args:
        density_rgb: (2, 3) float32, optical density in R, G, B of a unit of haematoxylin (row 0) and of eosin (row 1).
    """

    density_rgb: Field

    @classmethod
    def of_patient(cls, patient_seed: int) -> "Stain":
        """Draw a stain: hues around the Macenko reference vectors, amounts that vary by a factor of about two."""
        rng = np.random.default_rng([patient_seed, 0])
        reference = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
        hues = np.clip(reference + rng.normal(0.0, [[0.055], [0.065]], (2, 3)), 0.02, None)
        amounts = np.array([1.0, 0.72]) * np.exp(rng.uniform(-0.42, 0.42, 2))
        densities = hues / np.linalg.norm(hues, axis=1, keepdims=True) * amounts[:, None]
        return cls(densities.astype(np.float32))

    def colour(self, haematoxylin: Field, eosin: Field, noise: Field) -> Pixels:
        """Turn (h, w) planes of stain amounts into (h, w, 3) RGB by the Beer-Lambert law.

        Args:
            haematoxylin: (h, w) float32, amounts of 0 or more.
            eosin: (h, w) float32, amounts of 0 or more.
            noise: (h, w) float32, grey values that the sensor adds.
        """
        channels = []
        for of_haematoxylin, of_eosin in self.density_rgb.T:
            light = cv2.exp(-of_haematoxylin * haematoxylin - of_eosin * eosin) * np.float32(GLASS_GREY) + noise
            channels.append(np.clip(light + np.float32(0.5), 0, 255).astype(np.uint8))
        return np.stack(channels, axis=-1)


@dataclass(frozen=True, slots=True)
class Placement:
    """Say how one region looks into its texture, so that two regions of a class do not repeat each other.

    Args:
        shift_xy: texture position of the slide's origin, pixels.
        flip_x, flip_y: mirror the texture.
        transpose: swap the texture's axes.
    """

    shift_xy: tuple[int, int] = (0, 0)
    flip_x: bool = False
    flip_y: bool = False
    transpose: bool = False


@dataclass(frozen=True, slots=True)
class Texture:
    """Look into an endless plane made of one image, repeated, or mirrored where its edges do not join.

    Args:
        image: (h, w, 3) uint8 RGB.
        mirrored: repeat the image mirrored (for images that are not made to tile).
    """

    image: Pixels
    mirrored: bool = False

    def window(self, base_xy: tuple[int, int], size_px: tuple[int, int], placement: Placement) -> Pixels:
        """Return the (height, width, 3) pixels at `base_xy` (level-0 pixels, top-left) of `size_px` (width, height)."""
        height, width = self.image.shape[:2]
        along_x = self._indices(base_xy[0], size_px[0], placement.shift_xy[0], placement.flip_x)
        along_y = self._indices(base_xy[1], size_px[1], placement.shift_xy[1], placement.flip_y)
        if placement.transpose:
            part = self.image.take(self._fold(along_x, height), axis=0).take(self._fold(along_y, width), axis=1)
            return np.ascontiguousarray(part.transpose(1, 0, 2))
        return self.image.take(self._fold(along_y, height), axis=0).take(self._fold(along_x, width), axis=1)

    @staticmethod
    def _indices(base: int, count: int, shift: int, flip: bool) -> npt.NDArray[np.int64]:
        positions = np.arange(base, base + count)
        return shift - positions if flip else shift + positions

    def _fold(self, positions: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
        if not self.mirrored:
            return positions % length
        folded = positions % (2 * length)
        return np.minimum(folded, 2 * length - 1 - folded)


@dataclass(frozen=True, slots=True)
class Canvas:
    """Offer the drawing operations of a texture: every one of them continues across the opposite edge.

    Args:
        period_px: side of the texture.
        mpp: micrometres per pixel; all lengths below are given in micrometres.
        rng: source of every random choice, used in the order of the calls.
    """

    period_px: int
    mpp: float
    rng: np.random.Generator

    @property
    def period_um(self) -> float:
        """Side of the texture, micrometres."""
        return self.period_px * self.mpp

    def noise(self, along_um: float, across_um: float | None = None) -> Field:
        """Return smooth noise of mean 0 and standard deviation 1; `along_um` is its scale in x, `across_um` in y."""
        sigma_x, sigma_y = along_um / self.mpp, (across_um or along_um) / self.mpp
        # Smooth noise is made small and enlarged: no detail is lost, and it costs next to nothing.
        coarse = 2 ** int(math.log2(max(1.0, min(sigma_x, sigma_y))))
        side = max(16, self.period_px // coarse)
        coarse_x, coarse_y = sigma_x * side / self.period_px, sigma_y * side / self.period_px
        frequency_y, frequency_x = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
        gain = np.exp(-2 * np.pi**2 * ((frequency_x * coarse_x) ** 2 + (frequency_y * coarse_y) ** 2))
        gain[0, 0] = 0.0
        spectrum = scipy.fft.rfft2(self.rng.standard_normal((side, side), dtype=np.float32))
        plane = scipy.fft.irfft2(spectrum * gain.astype(np.float32), s=(side, side)).astype(np.float32)
        return self._enlarge(plane / (plane.std() + 1e-6))

    def _enlarge(self, plane: Field) -> Field:
        if plane.shape[0] == self.period_px:
            return plane
        scale = self.period_px // plane.shape[0]
        padded = np.pad(plane, 4, mode="wrap")
        large = cv2.resize(padded, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        return np.ascontiguousarray(large[4 * scale :, 4 * scale :][: self.period_px, : self.period_px])

    def blur(self, plane: Field, sigma_um: float) -> Field:
        """Return `plane` smoothed by a Gaussian."""
        sigma = sigma_um / self.mpp
        margin = min(self.period_px, math.ceil(3.5 * sigma))
        blurred = cv2.GaussianBlur(np.pad(plane, margin, mode="wrap"), (2 * margin + 1, 2 * margin + 1), sigma)
        return np.asarray(blurred[margin:-margin, margin:-margin], dtype=np.float32)

    def warp(self, plane: Field, shift_x_um: Field, shift_y_um: Field) -> Field:
        """Return `plane` with every pixel fetched from `shift` away."""
        ys, xs = np.mgrid[: self.period_px, : self.period_px].astype(np.float32)
        scale = np.float32(1 / self.mpp)
        wrapped = cv2.remap(
            plane, xs + shift_x_um * scale, ys + shift_y_um * scale, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
        )
        return np.asarray(wrapped, dtype=np.float32)

    def points(self, spacing_um: float, jitter: float = 0.42) -> Field:
        """Return (n, 2) float32 (x, y) positions in pixels, about `spacing_um` apart and irregular."""
        count = max(3, round(self.period_um / spacing_um))
        rows, columns = np.divmod(np.arange(count * count), count)
        cells = np.stack([columns + 0.5 * (rows % 2), rows], axis=1) + 0.5
        cells = cells + self.rng.uniform(-jitter, jitter, cells.shape)
        return (cells * (self.period_px / count) % self.period_px).astype(np.float32)

    def cells(self, spacing_um: float) -> Field:
        """Return the distance in micrometres of each pixel to the nearest wall of a foam of irregular cells."""
        # Found at about 1 um a pixel: the walls are blurred wider than that, and it takes a quarter of the time.
        coarse = 2 ** max(0, math.floor(math.log2(1.01 / self.mpp)))
        side = self.period_px // coarse
        margin = min(side, math.ceil(2.5 * spacing_um / (self.mpp * coarse)))
        columns, rows = np.rint(self.points(spacing_um) / coarse).astype(int).T % side
        seeds = np.full((side, side), 255, np.uint8)
        seeds[rows, columns] = 0
        _, owners = cv2.distanceTransformWithLabels(np.pad(seeds, margin, mode="wrap"), cv2.DIST_L2, 5)
        inside = np.full(owners.shape, 255, np.uint8)
        inside[:, 1:][owners[:, 1:] != owners[:, :-1]] = 0
        inside[1:][owners[1:] != owners[:-1]] = 0
        distances = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[margin:-margin, margin:-margin]
        return self._enlarge(np.asarray(distances, np.float32)) * np.float32(coarse * self.mpp)

    def nuclei(self, centres: Field, semi_axes_um: Field, angles_deg: Field, amounts: Field) -> Field:
        """Return a plane of haematoxylin amounts: filled ellipses with clumped chromatin, slightly out of focus.

        Args:
            centres: (n, 2) float32, (x, y) pixels.
            semi_axes_um: (n, 2) float32, long and short semi-axis.
            angles_deg: (n,) float32, of the long axis, clockwise from x.
            amounts: (n,) float32 in [0, 2].
        """
        axes = semi_axes_um / self.mpp
        period, reach = self.period_px, float(axes.max(initial=0.0)) + 2
        copies = [(centres, axes, angles_deg, amounts)]
        for shift in ((dx, dy) for dy in (-period, 0, period) for dx in (-period, 0, period) if dx or dy):
            moved = centres + np.array(shift, np.float32)
            near = ((moved > -reach) & (moved < period + reach)).all(axis=1)
            copies.append((moved[near], axes[near], angles_deg[near], amounts[near]))
        plane = np.zeros((period, period), np.uint8)
        every = [np.concatenate(parts) for parts in zip(*copies, strict=True)]
        fixed_centres, fixed_axes = (np.rint(part * 16).astype(int).tolist() for part in every[:2])
        values = np.clip(every[3] * 127, 0, 255).astype(int).tolist()
        for centre, axis, angle, value in zip(fixed_centres, fixed_axes, every[2].tolist(), values, strict=True):
            cv2.ellipse(plane, centre, axis, angle, 0, 360, value, -1, cv2.LINE_AA, 4)
        sharp = self.blur((plane / np.float32(127)).astype(np.float32), 0.4)
        chromatin = np.clip(1 + 0.16 * self.noise(0.7), 0.4, 1.6)
        return np.asarray(sharp * chromatin, np.float32)

    def sample(self, plane: Field, centres: Field) -> Field:
        """Return the values of `plane` at (n, 2) pixel positions, rounded to the nearest pixel."""
        columns, rows = np.rint(centres).astype(int).T % self.period_px
        return np.asarray(plane[rows, columns], np.float32)

    def uphill_deg(self, plane: Field, centres: Field) -> Field:
        """Return the direction in which `plane` rises at (n, 2) pixel positions, degrees clockwise from x."""
        along_x, along_y = (np.asarray(cv2.Sobel(plane, cv2.CV_32F, x, 1 - x, ksize=5), np.float32) for x in (1, 0))
        return np.degrees(np.arctan2(self.sample(along_y, centres), self.sample(along_x, centres)))

    def uniform(self, low: float, high: float, shape: int | tuple[int, ...]) -> Field:
        """Return uniform random numbers as float32."""
        return self.rng.uniform(low, high, shape).astype(np.float32)


Painter = Callable[[Canvas], tuple[Field, Field]]
"""Paints the amounts of haematoxylin and of eosin of one tissue class."""


def _step(plane: Field, edge: float, softness: float) -> Field:
    """Return 0 below `edge` and 1 above it, with a ramp of width `softness`."""
    return np.asarray(np.clip((plane - edge) / softness + 0.5, 0.0, 1.0), np.float32)


def paint_epithelium(canvas: Canvas) -> tuple[Field, Field]:
    """Paint glands: a lumen, columnar cells with dark nuclei at their base, thin stroma between the glands."""
    wobble_x, wobble_y = canvas.noise(22) * 7, canvas.noise(22) * 7
    distance = canvas.blur(canvas.warp(canvas.cells(canvas.rng.uniform(95, 115)), wobble_x, wobble_y), 2.0)
    gland, lumen = _step(distance, 5.5, 2.0), _step(canvas.blur(distance, 6.0) + 2.5 * canvas.noise(8), 34.0, 2.2)

    centres = canvas.points(6.2)
    depth = canvas.sample(distance, centres)
    chance = np.interp(depth, [5, 7.5, 15, 20, 27, 31], [0.0, 0.97, 0.95, 0.45, 0.15, 0.0])
    centres = centres[canvas.rng.random(len(centres)) < chance]
    count = len(centres)
    axes = np.stack([canvas.uniform(3.2, 4.7, count), canvas.uniform(2.0, 2.9, count)], axis=1)
    angles = canvas.uphill_deg(distance, centres) + canvas.rng.normal(0, 14, count).astype(np.float32)
    epithelial = canvas.nuclei(centres, axes, angles, canvas.uniform(0.75, 1.35, count))
    between = canvas.points(13.0)
    between = between[canvas.sample(distance, between) < 4.0]
    spindle = np.tile(np.array([[4.5, 1.3]], np.float32), (len(between), 1))
    fibroblasts = canvas.nuclei(
        between, spindle, canvas.uphill_deg(distance, between) + 90, canvas.uniform(0.7, 1.2, len(between))
    )

    grain, thickness = canvas.noise(1.1), 1 + 0.10 * canvas.noise(90)
    cell = gland * (1 - lumen)
    haematoxylin = np.maximum(epithelial, fibroblasts) * (1 - lumen) + cell * (0.20 + 0.04 * grain)
    eosin = cell * (0.50 + 0.09 * grain) + (1 - gland) * (0.62 + 0.16 * canvas.noise(4, 1.2)) + lumen * 0.03
    return haematoxylin * thickness, eosin * thickness


def paint_stroma(canvas: Canvas) -> tuple[Field, Field]:
    """Paint bundles of wavy collagen with clefts and sparse spindle nuclei along the fibres."""
    coarse, fine, clefts = canvas.noise(38, 4.5), canvas.noise(14, 0.9), canvas.noise(30, 3.2)
    eosin = 0.66 + 0.15 * coarse + 0.15 * fine + 0.05 * canvas.noise(0.8)
    eosin = np.clip(eosin, 0.18, 1.3) * (1 - 0.9 * _step(clefts, 1.75, 0.6))
    centres = canvas.points(canvas.rng.uniform(17, 23), jitter=0.6)
    count = len(centres)
    axes = np.stack([canvas.uniform(5.0, 9.5, count), canvas.uniform(1.2, 2.0, count)], axis=1)
    angles = canvas.rng.normal(0, 7, count).astype(np.float32)
    nuclei = canvas.nuclei(centres, axes, angles, canvas.uniform(0.7, 1.3, count))

    wave_x = canvas.noise(60) * 14
    wave_y = canvas.noise(75, 200) * 72 + canvas.noise(22, 60) * 6  # slow across the fibres, so that they never fold
    eosin, nuclei = canvas.warp(eosin, wave_x, wave_y), canvas.warp(nuclei, wave_x, wave_y)
    thickness = 1 + 0.14 * canvas.noise(100)
    return (nuclei + 0.05 * eosin) * thickness, eosin * (1 - 0.4 * np.minimum(nuclei, 1)) * thickness


def paint_adipose(canvas: Canvas) -> tuple[Field, Field]:
    """Paint fat: large empty vacuoles, thin pink walls, flat nuclei pressed against them."""
    wobble_x, wobble_y = canvas.noise(16) * 4, canvas.noise(16) * 4
    foam = canvas.warp(canvas.cells(canvas.rng.uniform(56, 72)), wobble_x, wobble_y)
    distance = canvas.blur(foam, 1.2)
    wall = 1 - _step(distance, 2.6, 1.6)
    corner = 1 - _step(canvas.blur(foam, 8.0) + 0.6 * canvas.noise(30), 5.6, 1.0)
    wall = np.maximum(wall, corner)
    centres = canvas.points(9.0)
    depth = canvas.sample(distance, centres)
    centres = centres[(depth < 3.0) & (canvas.rng.random(len(centres)) < 0.16)]
    along = canvas.uphill_deg(canvas.blur(foam, 3.0), centres) + 90
    count = len(centres)
    axes = np.stack([canvas.uniform(3.5, 5.5, count), canvas.uniform(1.2, 1.8, count)], axis=1)
    nuclei = canvas.nuclei(centres, axes, along, canvas.uniform(0.8, 1.3, count))
    eosin = wall * (0.58 + 0.10 * canvas.noise(2.0)) + (1 - wall) * (0.035 + 0.012 * canvas.noise(20))
    return nuclei + 0.07 * wall, np.maximum(eosin, 0)


def paint_lymphoid(canvas: Canvas) -> tuple[Field, Field]:
    """Paint packed small round lymphocytes, in places larger and paler as in a germinal centre."""
    pale = _step(canvas.noise(45), 0.9, 0.8)
    centres = canvas.points(canvas.rng.uniform(6.6, 7.6), jitter=0.38)
    centre_pale = canvas.sample(pale, centres)
    kept = canvas.rng.random(len(centres)) < 0.95 - 0.35 * centre_pale
    centres, centre_pale = centres[kept], centre_pale[kept]
    count = len(centres)
    radius = canvas.uniform(2.3, 3.5, count) + 1.1 * centre_pale
    axes = np.stack([radius * canvas.uniform(1.0, 1.35, count), radius], axis=1)
    amounts = canvas.uniform(0.9, 1.4, count) - 0.42 * centre_pale
    nuclei = canvas.nuclei(centres, axes, canvas.uniform(0, 180, count), amounts)
    thickness = 1 + 0.09 * canvas.noise(80)
    eosin = np.maximum(0.27 + 0.12 * canvas.noise(3.0), 0.03)
    return (nuclei + 0.10 + 0.03 * canvas.noise(2.0)) * thickness, eosin * thickness


PAINTERS: Mapping[str, Painter] = MappingProxyType(
    {
        "epithelium": paint_epithelium,
        "stroma": paint_stroma,
        "adipose": paint_adipose,
        "lymphoid": paint_lymphoid,
    }
)
"""The tissue classes that can be painted, by name."""


def paint_texture(class_name: str, *, period_px: int, mpp: float, patient_seed: int) -> Texture:
    """Paint the texture of one class as one patient shows it.

    Args:
        class_name: a key of PAINTERS.
        period_px: side of the texture, after which it repeats without a seam.
        mpp: micrometres per pixel.
        patient_seed: decides the stain and the morphology.
    """
    rng = np.random.default_rng([patient_seed, 1 + list(PAINTERS).index(class_name)])
    haematoxylin, eosin = PAINTERS[class_name](Canvas(period_px=period_px, mpp=mpp, rng=rng))
    noise = np.float32(1.1) * rng.standard_normal((period_px, period_px), dtype=np.float32)
    stain = Stain.of_patient(patient_seed)
    return Texture(stain.colour(np.maximum(haematoxylin, 0), np.maximum(eosin, 0), noise))
