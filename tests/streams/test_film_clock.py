from fractions import Fraction

import pytest

from torchrsm.streams.film_clock import FilmClock, Gap

PERIOD = Fraction(1, 25)  # 40 ticks of a thousandth


def clock(**settings):
    return FilmClock(Fraction(1, 1000), PERIOD, Fraction(60), **settings)


def play(one, stamps, duration=None, lost=()):
    """Give a clock packets and frames with some stamps; packets ``lost`` give no frame."""
    for stamp in sorted({*stamps, *lost}):
        one.expect(stamp)
    return [one.frame(stamp, duration) for stamp in stamps]


def numbers(moments):
    return [moment.number for moment in moments]


def test_numbers_and_times_follow_from_stamps():
    moments = play(clock(), [500, 540, 580])
    assert moments == [(0, 0, False), (1, Fraction(1, 25), False), (2, Fraction(2, 25), False)]


@pytest.mark.parametrize("duration", [None, 40])
def test_room_in_a_constant_rate_is_a_gap(duration):
    one = clock()
    stamps = [40 * number for number in (*range(6), 9, 10)]
    moments = play(one, stamps, duration)
    assert numbers(moments) == [0, 1, 2, 3, 4, 5, 9, 10]
    assert [moment.after_gap for moment in moments] == [False] * 6 + [True, False]
    assert one.gaps == [Gap(6, 3, 0.24, 0.36)]
    assert str(one.gaps[0]) == "frames 6 to 8 (second 0.24 to 0.36)"


def test_room_that_the_frame_before_fills_is_no_gap():
    one = clock()
    moments = play(one, [40 * number for number in range(6)], 40)
    one.frame(240, 160)
    assert one.frame(400, 40).number == 7
    assert (numbers(moments), one.gaps) == ([0, 1, 2, 3, 4, 5], [])


def test_room_in_a_variable_rate_is_a_gap_only_if_packets_were_in_it():
    stamps = [0, 40, 100, 130, 330, 370]
    whole, broken = clock(), clock()
    assert numbers(play(whole, stamps)) == [0, 1, 2, 3, 4, 5]
    assert whole.gaps == []
    assert numbers(play(broken, stamps, lost=[190, 250])) == [0, 1, 2, 3, 6, 7]
    assert broken.gaps == [Gap(4, 2, 0.17, 0.33)]


def test_packets_that_show_nothing_are_no_gap():
    assert numbers(play(clock(), [0, 40, 80, 120], lost=[79, 81])) == [0, 1, 2, 3]


def test_what_is_lost_before_the_first_frame_counts():
    one = clock()
    moments = play(one, [80, 120], lost=[0, 40])
    assert moments == [(2, Fraction(2, 25), True), (3, Fraction(3, 25), False)]
    assert one.gaps == [Gap(0, 2, 0.0, 0.08)]


@pytest.mark.parametrize(("seconds", "missing"), [(None, 0), (0.2, 0), (0.24, 0), (0.28, 2), (1, 20)])
def test_a_film_that_ends_early_misses_its_end(seconds, missing):
    one = clock()
    play(one, [0, 40, 80, 120, 160])
    one.finish(None if seconds is None else Fraction(str(seconds)))
    assert [(gap.first, gap.frames) for gap in one.gaps] == ([(5, missing)] if missing else [])


def test_lost_packets_at_the_end_are_missing():
    one = clock()
    play(one, [0, 40, 80], lost=[120, 160])
    one.finish(None)
    assert one.gaps == [Gap(3, 2, 0.12, 0.2)]


def test_a_clock_that_was_set_anew_goes_on_after_a_period():
    one = clock()
    moments = play(one, [0, 40, 80, 100_000, 100_040])
    moments += [one.frame(stamp) for stamp in (10, 50)]  # and back
    assert moments == [(number, number * PERIOD, False) for number in range(7)]
    one.finish(Fraction(100))
    assert one.gaps == []


def test_frames_without_stamps_follow_at_the_rate():
    one = clock()
    assert numbers([one.frame(None) for _ in range(3)]) == [0, 1, 2]
    one.lose(None)
    one.lose(None)
    assert one.frame(None) == (5, 5 * PERIOD, True)
    assert one.gaps == [Gap(3, 2, 0.12, 0.2)]


def test_a_frame_without_a_stamp_lies_between_its_neighbours():
    one = clock()
    moments = [one.frame(stamp) for stamp in (0, 40, None, 120)]
    assert moments == [(number, number * PERIOD, False) for number in range(4)]


def test_a_passage_that_begins_later_counts_from_the_beginning():
    moments = play(clock(origin=Fraction(1, 2)), [10_500, 10_540], lost=[10_420, 10_460])
    assert moments == [(250, 10, False), (251, 10 + PERIOD, False)]


def test_times_never_go_back():
    moments = play(clock(), [0, 80, 40, 120])
    assert [moment.time for moment in moments] == sorted(moment.time for moment in moments)
    assert numbers(moments) == sorted(set(numbers(moments)))
