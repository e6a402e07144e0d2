import math
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from torchrsm import physics
from torchrsm.scoring.physics import Detections, PhysicsSummary, WorldGeometry
from torchrsm.streams import bouncing_ball_sequences
from torchrsm.streams.bouncing_balls import render_balls, simulate_balls

HOME = [[6.0, 6.0], [23.0, 7.0], [14.0, 22.0]]  # three balls, far from each other and from the walls


def picture(centres, radius=3.6, side=30):
    """The world's image of balls at px positions (x, y), from its definition; [side, side]."""
    axis = np.arange(side) + 0.5
    image = np.zeros((side, side))
    for x, y in centres:
        squared = (axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2
        image += np.exp(-((squared / radius**2) ** 4))
    return np.minimum(image, 1)


def video(paths, **world):
    """Frames [t, 1, side, side] of positions [t, balls, 2]."""
    return torch.tensor(np.stack([picture(centres, **world) for centres in paths])[:, None], dtype=torch.float32)


def straight(steps, velocities, start=HOME):
    """Positions [steps, balls, 2] of balls that keep their velocity."""
    return np.array(start) + np.arange(steps)[:, None, None] * np.array(velocities)


def furthest(found, true):
    """The largest distance in the best matching of two sets of positions, by trying all."""
    return min(np.linalg.norm(np.array(order) - true, axis=-1).max() for order in permutations(found))


def found_in(image, **world):
    geometry = WorldGeometry(**world)
    detections = physics.detect_balls(torch.tensor(image, dtype=torch.float32)[None, None], geometry)
    count = int(detections.counts[0, 0])
    return count, detections.centres[0, 0, :count]


def as_detections(paths):
    """Detections with the positions [n, t, balls, 2] as centres."""
    n, t, balls, _ = paths.shape
    return Detections(np.full((n, t), balls), np.concatenate([paths, np.full_like(paths, np.nan)], axis=2))


def spread_out(generator, side=30.0, radius=3.6, apart=8.0):
    while True:
        centres = generator.uniform(radius, side - radius, (3, 2))
        if min(np.linalg.norm(a - b) for a, b in combinations(centres, 2)) > apart:
            return centres


def test_geometry_has_the_masses_of_its_pixels():
    world = WorldGeometry()
    assert world.ball_mass == pytest.approx(36.9, abs=0.05)
    assert world.energy == 2.25
    assert picture([[15.2, 14.7]]).sum() == pytest.approx(world.ball_mass, rel=0.01)
    large = WorldGeometry(radius=7.2, side=60)
    assert picture([[30, 30]], 7.2, 60).sum() == pytest.approx(large.ball_mass, rel=0.003)


@pytest.mark.parametrize("setting", [{"balls": 0}, {"radius": 0.0}, {"side": 3}, {"speed": -1.0}, {"radius": math.inf}])
def test_geometry_out_of_range_is_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        WorldGeometry(**setting)


def test_detection_finds_the_rendered_balls():
    generator = np.random.default_rng(0)
    for _ in range(30):
        centres = spread_out(generator)
        count, found = found_in(picture(centres))
        assert count == 3
        assert furthest(found, centres) < 0.01


@pytest.mark.parametrize("distance", [7.4, 7.2, 6.5, 5.0])
@pytest.mark.parametrize("angle", [0.0, 0.6, 1.5])
def test_detection_parts_a_merged_pair(distance, angle):
    place, half = np.array([10.3, 11.1]), distance / 2 * np.array([math.cos(angle), math.sin(angle)])
    centres = np.array([place + half, place - half, [23.2, 23.4]])
    count, found = found_in(picture(centres))
    assert count == 3
    assert furthest(found, centres) < 0.05


def test_detection_parts_three_touching_balls():
    for centres in ([[8, 15], [15, 15], [22, 15]], [[11, 11], [18, 11], [14.5, 17]]):
        count, found = found_in(picture(centres))
        assert count == 3
        assert furthest(found, np.array(centres)) < 0.05


def test_detection_finds_a_ball_beyond_the_wall():
    centres = np.array([[2.8, 15.0], [27.3, 27.2], [15.0, 4.0]])
    count, found = found_in(picture(centres))
    assert count == 3
    assert furthest(found, centres) < 0.01


@pytest.mark.parametrize("balls", [0, 1, 2, 4])
def test_detection_counts_missing_and_surplus_balls(balls):
    centres = [*HOME, [25.0, 25.0]][:balls]
    assert found_in(picture(centres))[0] == balls


@pytest.mark.parametrize(
    ("image", "count"),
    [
        (picture([[15, 15]], radius=2.2), 0),  # 0.37 of a ball
        (picture([[15, 15]], radius=2.8), 1),  # 0.60
        (picture([[15, 15]], radius=4.2), 1),  # 1.36
        (picture([[15, 15]], radius=5.0), 2),  # 1.93
        (0.49 * picture([[15, 15]]), 0),
        (0.65 * picture([[15, 15]]), 1),
        (gaussian_filter(picture([[15, 15]]), 1.0), 1),
        (gaussian_filter(picture([[15, 15]]), 4.0), 0),
        (np.full((30, 30), 0.12), 0),
        (np.eye(30), 0),
    ],
)
def test_a_ball_has_between_half_and_one_and_a_half_of_its_mass(image, count):
    assert found_in(np.clip(image, 0, 1))[0] == count


def test_a_blurred_ball_is_found_at_its_centre():
    centres = np.array(HOME) + 0.3
    count, found = found_in(gaussian_filter(picture(centres), 1.0))
    assert count == 3
    assert furthest(found, centres) < 0.1


def test_a_white_frame_has_a_count_but_no_centres():
    detections = physics.detect_balls(torch.ones(2, 1, 30, 30))
    assert (detections.counts > 20).all()
    assert np.isnan(detections.centres).all()


def test_detection_does_not_depend_on_the_other_frames():
    """Frames that touch in memory are no neighbours, whatever the chunk they fall into."""
    frames = video([HOME, *(spread_out(np.random.default_rng(seed)) for seed in range(5))])
    together = physics.detect_balls(frames.repeat(1500, 1, 1, 1)).centres
    for index in range(6):
        alone = physics.detect_balls(frames[index : index + 1]).centres
        np.testing.assert_array_equal(together[:, index::6], np.repeat(alone, 1500, axis=1))


def test_detection_in_another_world():
    world = {"balls": 5, "radius": 4.8, "side": 60}
    centres = np.array([[10, 10], [19.5, 10.2], [40, 12], [12, 44], [50, 50]])
    count, found = found_in(picture(centres, 4.8, 60), **world)
    assert count == 5
    assert furthest(found, centres) < 0.01


def test_calibration_on_true_sequences():
    true = bouncing_ball_sequences(40, seed=3)
    detections = physics.detect_balls(true.frames)
    positions = 3 * true.positions.numpy()
    assert (detections.counts == 3).mean() >= 0.995
    right = detections.counts == 3
    orders = [detections.centres[:, :, list(order)] for order in permutations(range(3))]
    distances = np.stack([np.linalg.norm(centres - positions, axis=-1) for centres in orders])
    best = (distances**2).sum(axis=-1).argmin(axis=0)
    distance = np.take_along_axis(distances, best[None, ..., None], axis=0)[0][right]
    assert distance.max() < 0.1  # touching balls included
    touching = [np.linalg.norm(positions[:, :, a] - positions[:, :, b], axis=-1) < 7.2 for a, b in ((0, 1), (1, 2))]
    assert np.any(touching)  # else the line above tests less than it says


def test_matching_follows_shuffled_balls():
    generator = np.random.default_rng(1)
    paths = straight(12, [[0.5, 0.2], [-0.9, 0.4], [0.1, -1.0]])
    shuffled = np.stack([generator.permutation(positions) for positions in paths])
    shuffled[0] = paths[0]
    np.testing.assert_array_equal(physics.match_balls(as_detections(shuffled[None]))[0], paths)


def test_matching_minimises_the_sum_not_each_distance():
    """The first ball is nearest to where the second one is going; taking that place would send the second one far."""
    paths = np.array([[[10.0, 15], [12.0, 15], [25, 25]], [[11.8, 15], [14.0, 15], [25, 25]]])
    shown = paths.copy()
    shown[1] = paths[1, [2, 1, 0]]
    np.testing.assert_array_equal(physics.match_balls(as_detections(shown[None]))[0], paths)


def test_matching_of_five_balls_agrees_with_trying_all():
    generator = np.random.default_rng(2)
    world = WorldGeometry(balls=5)
    paths = generator.uniform(0, 30, (3, 2, 5, 2))
    tracks = physics.match_balls(as_detections(paths), world)
    for before, after, matched in zip(paths[:, 0], paths[:, 1], tracks[:, 1], strict=True):
        least = min(((after[list(order)] - before) ** 2).sum() for order in permutations(range(5)))
        assert ((matched - before) ** 2).sum() == pytest.approx(least)


def test_a_missing_ball_breaks_the_tracks():
    paths = straight(6, [[0.5, 0], [0, 0.5], [0.5, 0.5]])
    frames = torch.cat([video(paths[:3]), video([paths[3][:2]]), video(paths[4:])])
    tracks = physics.match_balls(physics.detect_balls(frames))
    np.testing.assert_array_equal(np.isnan(tracks[0]).all(axis=(-2, -1)), [False, False, False, True, False, False])
    energy = physics.kinetic_energy(tracks)[0]
    np.testing.assert_allclose(energy, [1.0, 1.0, math.nan, math.nan, 1.0], atol=1e-3)


def test_energy_of_straight_motion():
    velocities = [[0.5, 0.2], [-0.9, 0.4], [0.1, -0.6]]
    result = physics.judge(video(straight(8, velocities)))
    assert math.isnan(result.energy[0, 0])
    np.testing.assert_allclose(result.energy[0, 1:], np.square(velocities).sum(), atol=1e-3)
    assert (result.bounce[0, 1:-1] == 0).all()


def test_frames_before_show_the_motion_into_the_first_step():
    frames = video(straight(8, [[0.5, 0.2], [-0.9, 0.4], [0.1, -0.6]]))
    result = physics.judge(frames[5:], before=frames[:5])
    whole = physics.judge(frames)
    np.testing.assert_array_equal(result.energy, whole.energy[:, 5:])
    np.testing.assert_array_equal(result.bounce, whole.bounce[:, 5:])
    one_step = physics.judge(frames[7:], before=frames[6:7])
    np.testing.assert_array_equal(one_step.energy, whole.energy[:, 7:])


def test_mass_and_sharpness():
    world = WorldGeometry()
    frames = torch.zeros(1, 3, 1, 30, 30)
    frames[0, 1, 0, 0, :9] = torch.tensor([0.05, 0.1, 0.11, 0.5, 0.5, 0.89, 0.9, 0.95, 1.0])
    frames[0, 2] = 1.0
    np.testing.assert_allclose(physics.frame_mass(frames)[0], [0, 5.0 / 110.7, 900 / 110.7], rtol=1e-3)
    exact = torch.tensor([0.1, 0.9])
    between = int(((exact > 0.1) & (exact < 0.9)).sum())  # how float32 rounds the two bounds
    np.testing.assert_allclose(physics.sharpness(frames)[0], [0, (4 + between) / 900, 0])
    assert physics.frame_mass(video([HOME]), world)[0, 0] == pytest.approx(1, abs=0.01)
    assert physics.sharpness(video([HOME])) < physics.sharpness(
        torch.tensor(gaussian_filter(picture(HOME), 1.5))[None, None]
    )


@pytest.mark.parametrize(("x", "share"), [(2.5, 0), (2.3, 1 / 3), (27.5, 0), (27.7, 1 / 3)])
def test_outside_share(x, share):
    paths = np.array([[[[x, 15.0], [15, 8], [15, 22]]]])
    assert physics.outside_share(as_detections(paths))[0, 0] == pytest.approx(share)
    assert physics.outside_share(as_detections(paths[..., ::-1]))[0, 0] == pytest.approx(share)


@pytest.mark.parametrize(("distance", "share"), [(6.1, 0), (5.9, 1 / 3), (0.5, 1 / 3)])
def test_overlap_share(distance, share):
    paths = np.array([[[[10.0, 15], [10.0 + distance, 15], [25, 25]]]])
    assert physics.overlap_share(as_detections(paths))[0, 0] == pytest.approx(share)


def test_shares_without_balls_are_unknown():
    detections = physics.detect_balls(torch.zeros(1, 1, 30, 30))
    assert np.isnan(physics.outside_share(detections)).all()
    assert np.isnan(physics.overlap_share(detections)).all()
    single = physics.detect_balls(video([HOME[:1]]))
    assert physics.outside_share(single) == 0
    assert np.isnan(physics.overlap_share(single)).all()


def with_bounce(before, after, at, steps=12, within=0.5, place=HOME):
    """Tracks [1, steps, 3, 2] whose velocities change ``within`` of the transition from frame ``at``."""
    times = np.arange(steps)[:, None, None] - (at + within)
    velocities = np.where(times < 0, np.array(before)[None], np.array(after)[None])
    return (np.array(place) + times * velocities)[None]


@pytest.mark.parametrize("within", [0.5, 1.0])
def test_bounces_are_found_at_their_transition(within):
    still = [[0.5, 0], [0, 0.5]]
    tracks = with_bounce([*still, [0.9, 0.3]], [*still, [0.9, -0.3]], at=4, within=within)
    expected = np.zeros((1, 11))
    expected[0, 4] = 1
    expected[0, -1] = math.nan
    np.testing.assert_array_equal(physics.bounces(tracks), expected)


@pytest.mark.parametrize(("speed", "found"), [(1.5, 1), (1.9, 1), (2.1, 0), (6.0, 0)])
def test_a_bounce_is_a_change_of_a_tenth_of_the_world_s_speed(speed, found):
    tracks = with_bounce([[0.5, 0.0]] * 3, [[0.5, 0.2], [0.5, 0.0], [0.5, 0.0]], at=4, within=1.0)
    assert np.nansum(physics.bounces(tracks, WorldGeometry(speed=speed))) == found


def test_two_bounces_in_a_row_are_two():
    steps = np.array(
        [[0.6, 0.5], [0.6, 0.5], [0.6, 0], [0.6, -0.5], [0, -0.5], [-0.6, -0.5], [-0.6, -0.5], [-0.6, -0.5]]
    )
    path = np.cumsum(np.concatenate([[[10.0, 10.0]], steps]), axis=0)
    tracks = np.stack([path, path + 50, path + 90], axis=1)[None]
    np.testing.assert_array_equal(physics.bounces(tracks)[0, :-1], [0, 0, 1, 0, 1, 0, 0])


def turned(velocity, degrees):
    angle = math.radians(degrees)
    x, y = velocity
    return [x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)]


@pytest.mark.parametrize("within", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("error", [0, 20, -35])
def test_reflection_at_a_wall(within, error):
    still = [[0.3, 0], [0, 0.3]]
    place = [[15.0, 8.0], [8.0, 22.0], [26.4, 15.0]]
    tracks = with_bounce([*still, [0.8, 0.4]], [*still, turned([-0.8, 0.4], error)], 4, within=within, place=place)
    found = physics.reflections(tracks)
    np.testing.assert_allclose(found.degrees, [abs(error)], atol=1e-6)
    assert found.frame.tolist() == [5 if within == 1 else 4]
    assert found.pair.tolist() == [False]
    upright = physics.reflections(tracks[..., ::-1])
    np.testing.assert_allclose(upright.degrees, [abs(error)], atol=1e-6)


@pytest.mark.parametrize("within", [0.5, 1.0])
@pytest.mark.parametrize("error", [0, 25])
def test_reflection_of_a_pair(within, error):
    angle = 0.4  # of the line of centres
    normal = np.array([math.cos(angle), math.sin(angle)])
    place = np.array([[11.0, 13.0], [11.0, 13.0] + 7.0 * normal, [25.0, 4.0]])
    before = np.array([[0.7, 0.6], [-0.6, 0.5], [0.0, 0.0]])
    # Equal masses: the components along the normal change places, those across it stay.
    along = before @ normal
    after = before - along[:, None] * normal + along[[1, 0, 2], None] * normal
    after[2] = before[2]
    after[0] = turned(after[0], error)
    found = physics.reflections(with_bounce(before, after, 5, within=within, place=place))
    np.testing.assert_allclose(np.sort(found.degrees), [0, error], atol=1e-6)
    assert found.pair.all()


def test_reflections_leave_out_what_is_not_isolated():
    still = [[0.3, 0], [0, 0.3]]
    free = with_bounce([*still, [0.8, 0.4]], [*still, [-0.8, 0.4]], 4, place=[[15, 8], [8, 22], [20, 15]])
    corner = with_bounce([*still, [0.8, 0.4]], [*still, [-0.8, -0.4]], 4, place=[[15, 8], [8, 22], [26.4, 26.4]])
    stopped = with_bounce([*still, [0.8, 0.4]], [*still, [0, 0]], 4, place=[[15, 8], [8, 22], [26.4, 15]])
    early = with_bounce([*still, [0.8, 0.4]], [*still, [-0.8, 0.4]], 0, place=[[15, 8], [8, 22], [26.4, 15]])
    for tracks in (free, corner, stopped, early):
        assert len(physics.reflections(tracks).degrees) == 0


def test_smoothed_energy_is_a_median_of_what_is_known():
    energy = np.full((1, 40), 2.0)
    energy[0, ::3] = 0.1
    np.testing.assert_array_equal(physics.smoothed_energy(energy), np.full((1, 40), 2.0))
    energy[0, 20:] = math.nan
    smooth = physics.smoothed_energy(energy)[0]
    assert np.isfinite(smooth[:20]).all()
    assert np.isnan(smooth[20:]).all()


@pytest.mark.parametrize(
    ("wrong", "expected"), [([7, 8, 9, 10], 20), ([7, 8, 9, 10, 11], 7), ([15, 16, 17, 18, 19], 15)]
)
def test_lifetime_ends_with_five_wrong_counts(wrong, expected):
    count = np.full((2, 20), 3)
    count[0, wrong] = 2
    assert physics.lifetime(count, np.full((2, 20), 2.25)).tolist() == [expected, 20]


@pytest.mark.parametrize(("energy", "expected"), [(1.2, 20), (1.1, 8), (3.3, 20), (3.4, 8)])
def test_lifetime_ends_when_the_energy_leaves_its_band(energy, expected):
    energies = np.full((1, 20), 2.25)
    energies[0, 8:] = energy
    assert physics.lifetime(np.full((1, 20), 3), energies).tolist() == [expected]
    assert physics.lifetime(np.full((1, 20), 3), energies / 2, np.array([1.125])).tolist() == [expected]


def stopping(steps, stop):
    """Balls with energy 2.25 that stop after ``stop`` steps."""
    start = [[5.0, 8.0], [15.0, 15.0], [25.0, 22.0]]
    step = np.array([[0.0, 1.0], [0.0, -1.0], [0.5, 0.0]])
    direction = np.where(np.arange(steps) % 4 < 2, 1, -1)
    direction[stop:] = 0
    way = np.concatenate([[0], np.cumsum(direction)])
    return np.array(start) + way[:, None, None] * step


def test_a_dream_that_stops_has_a_lifetime():
    frames = video(stopping(60, 30))
    result = physics.judge(frames[21:], before=frames[:21])
    assert result.lifetime.tolist() == [10]
    assert physics.judge(frames[:30]).lifetime.tolist() == [30]
    frozen = physics.judge(frames[40:])  # the motion into its first step is unknown, so that step is not judged
    assert frozen.lifetime.tolist() == [1]


def test_lifetime_is_held_against_the_frames_before():
    slow = video(stopping(60, 60) * 0.5 + 7)  # a quarter of the world's energy, all along
    assert physics.judge(slow[20:]).lifetime.tolist() == [1]
    result = physics.judge(slow[20:], before=slow[:20])
    assert result.lifetime.tolist() == [41]
    np.testing.assert_allclose(result.reference_energy, 2.25 / 4, rtol=1e-3)


def test_tracked_error_of_a_known_shift():
    paths = straight(6, [[0.5, 0.2], [-0.9, 0.4], [0.1, -0.6]])
    shift = np.array([0.6, -0.8])
    dream = (paths + shift)[:, [2, 0, 1]]
    result = physics.judge(video(dream), truth=video(paths))
    np.testing.assert_allclose(result.tracked[0], 1.0, atol=1e-3)
    shorter = physics.judge(video(dream), truth=video(paths[:4]))
    np.testing.assert_allclose(shorter.tracked[0], [1, 1, 1, 1, math.nan, math.nan], atol=1e-3)


def test_tracked_error_is_unknown_where_a_ball_is_missing():
    truth = as_detections(straight(2, np.zeros((3, 2)))[None])
    one_less = Detections(np.array([[3, 2]]), truth.centres)
    np.testing.assert_array_equal(physics.tracked_error(one_less, truth), [[0, math.nan]])
    with pytest.raises(ValueError, match=r"same sequences and frames \[n, t\]; got \[1, 2\] and \[1, 1\]"):
        physics.tracked_error(truth, Detections(truth.counts[:, :1], truth.centres[:, :1]))


def test_a_small_error_grows_in_the_true_world():
    """Why the true video is tracked for 30 steps only: 0.03 px at the start are many times as much by then."""
    true = bouncing_ball_sequences(20, seed=5, sequence_length=2)
    start, velocities = true.positions[:, 0], true.velocities[:, 0]
    noise = 0.01 * torch.randn(start.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    worlds = [render_balls(simulate_balls(place, velocities, 60)[0]) for place in (start, start + noise)]
    error = physics.judge(worlds[1], truth=worlds[0]).tracked
    assert 0.02 < np.median(error[:, 0]) < 0.06
    assert np.mean(error[:, 29]) > 10 * np.mean(error[:, 0])
    assert np.isnan(error[:, 30:]).all()


def test_physics_of_the_true_world():
    frames = bouncing_ball_sequences(25, seed=8, sequence_length=200).frames
    summary = physics.summarise_physics(frames[:, 50:], truth=frames[:, 50:], before=frames[:, :50])
    whole = summary.windows[-1]
    assert (whole.first, whole.last) == (1, 150)
    assert whole.right_count >= 0.995
    assert whole.mass == pytest.approx(1, abs=0.01)
    assert whole.kinetic_energy == pytest.approx(2.25, abs=0.01)
    assert whole.outside < 1e-4
    assert whole.overlap < 1e-3
    assert whole.sharpness == pytest.approx(0.089, abs=0.003)
    assert whole.bounce_rate == pytest.approx(0.215, abs=0.03)
    assert whole.contacts > 500
    assert whole.reflection_degrees < 0.1
    assert summary.never_ended >= 0.95
    assert [entry.median for entry in summary.tracked] == [0] * 5


def test_bounce_rate_agrees_with_the_velocities_of_the_world():
    true = bouncing_ball_sequences(30, seed=11)
    rate = (true.velocities.diff(dim=1) != 0).any(dim=-1).any(dim=-1).double().mean().item()
    assert np.nanmean(physics.judge(true.frames).bounce) == pytest.approx(rate, rel=0.1)


def test_sequences_are_judged_each_for_itself():
    frames = bouncing_ball_sequences(5, seed=4, sequence_length=40).frames
    order = [3, 0, 4, 1, 2]
    one = physics.judge(frames[:, 15:], before=frames[:, :15])
    other = physics.judge(frames[order, 15:], before=frames[order, :15])
    for name in ("counts", "mass", "energy", "smooth_energy", "outside", "overlap", "sharpness", "bounce", "lifetime"):
        np.testing.assert_array_equal(getattr(one, name)[order], getattr(other, name))
    assert sorted(one.reflections.degrees) == sorted(other.reflections.degrees)


def test_a_mirrored_video_has_the_same_physics():
    frames = bouncing_ball_sequences(4, seed=4, sequence_length=60).frames
    one, other = physics.judge(frames), physics.judge(frames.transpose(-1, -2).flip(-1))
    np.testing.assert_allclose(one.energy, other.energy, atol=1e-2)
    np.testing.assert_array_equal(one.bounce, other.bounce)
    np.testing.assert_array_equal(one.lifetime, other.lifetime)
    assert len(one.reflections.degrees) == len(other.reflections.degrees)


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(2, 12, 1, 30, 30), torch.ones(2, 12, 1, 30, 30), torch.full((2, 12, 1, 30, 30), 0.5)],
    ids=["black", "white", "grey"],
)
def test_a_video_without_balls_is_summarised(frames):
    summary = physics.summarise_physics(frames, truth=frames, before=frames)
    assert summary.lifetime == 0
    assert summary.never_ended == 0
    assert summary.windows[0].right_count == 0
    assert summary.windows[0].kinetic_energy is None
    assert summary.tracked[0].median is None
    assert summary.tracked[0].share == 0
    assert PhysicsSummary.model_validate_json(summary.model_dump_json()) == summary


def test_noise_is_judged_without_a_crash():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 6, 1, 30, 30, generator=generator)
    blurred = torch.tensor(gaussian_filter(noise.numpy(), (0, 0, 0, 1.5, 1.5)) * 1.2)
    for frames in (noise, blurred.clamp(0, 1), (noise > 0.3).float()):
        summary = physics.summarise_physics(frames)
        assert PhysicsSummary.model_validate_json(summary.model_dump_json()) == summary


def test_summary_windows_steps_and_survival():
    frames = torch.stack([video(stopping(200, 30)), video(stopping(200, 200))])
    summary = physics.summarise_physics(frames[:, 1:], frames[:, 1:21], frames[:, :1])
    assert (summary.sequences, summary.steps) == (2, 200)
    spans = [(window.first, window.last) for window in summary.windows]
    assert spans == [(1, 50), (1, 150), (151, 200), (1, 200)]
    # The median of two sequences: one at 2.25, one at rest for most of the time.
    assert summary.windows[0].kinetic_energy == pytest.approx(2.25, abs=0.01)
    assert summary.windows[2].kinetic_energy == pytest.approx(2.25 / 2, abs=0.01)
    assert summary.by_step.alive == (1.0,) * 30 + (0.5,) * 170
    assert summary.never_ended == 0.5
    assert summary.lifetime == 115
    assert summary.by_step.kinetic_energy[0] == pytest.approx(2.25, abs=0.01)
    assert summary.by_step.right_count == (1.0,) * 200
    assert [entry.step for entry in summary.tracked] == [1, 5, 10, 20]
    short = physics.summarise_physics(frames[:, :10])
    assert [(window.first, window.last) for window in short.windows] == [(1, 10)]
    assert short.tracked == ()
    assert short.by_step.kinetic_energy[0] is None


def test_one_sequence_may_come_without_its_batch_dimension():
    frames = video(straight(5, [[0.5, 0.2], [-0.9, 0.4], [0.1, -0.6]]))
    plain = physics.summarise_physics(frames[2:], frames[2:], frames[:2])
    assert plain == physics.summarise_physics(frames[None, 2:], frames[None, 2:], frames[None, :2])


@pytest.mark.parametrize("shape", [(30, 30), (5, 30, 30), (5, 3, 30, 30), (2, 5, 1, 30, 28), (0, 5, 1, 30, 30)])
def test_frames_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"frames must have the shape \[n, t, 1, 30, 30\].*got \[") as error:
        physics.judge(torch.zeros(shape))
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1])
def test_frames_with_a_wrong_value_are_refused(value):
    frames = torch.zeros(3, 1, 30, 30)
    frames[1, 0, 2, 3] = value
    with pytest.raises(ValueError, match="frames must lie in 0..1 and be finite; got"):
        physics.detect_balls(frames)
    with pytest.raises(ValueError, match="before must lie in 0..1 and be finite; got"):
        physics.judge(torch.zeros(3, 1, 30, 30), before=frames)


def test_other_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"frames must be floating point in 0..1; got torch.uint8"):
        physics.judge(torch.zeros(3, 1, 30, 30, dtype=torch.uint8))
    with pytest.raises(ValueError, match="truth must have the 1 sequences of frames; got 2"):
        physics.judge(torch.zeros(3, 1, 30, 30), truth=torch.zeros(2, 3, 1, 30, 30))
    with pytest.raises(ValueError, match="frames must be >= 2, those before included, to show a motion; got 1"):
        physics.judge(torch.zeros(1, 1, 30, 30))
    with pytest.raises(ValueError, match=r"t >= 2 to show a motion; got \[1, 1, 3, 2\]"):
        physics.kinetic_energy(np.zeros((1, 1, 3, 2)))
