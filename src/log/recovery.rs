//! The verdict on the end of the log: what is damage, what is the end, and what lies behind it.
//!
//! *Proven* is what the cursor or a sync mark covers; nothing else is proof. The rows of the table:
//!
//! | what the walk meets | verdict |
//! |---|---|
//! | a bad frame or a missing segment below the proof | damage: reported, skipped |
//! | above the proof, zeros | the end; what lies behind them is an unfinished copy |
//! | above the proof, a bad frame, written in this boot | damage: the process died, the page cache did not |
//! | above the proof, a bad frame, another boot or after a failed sync | the end; what follows is set aside |
//! | a run without its last frame, at the end | dropped |
//! | a rewritten segment | proven: it was durable before it had its name |
//! | without any cursor, a missing segment that others follow | it was dropped; the log goes on behind it |
//!
//! One rule goes beyond the table: zeros above the proof that frames follow are damage too if they were written in
//! this boot, since a process appends in order and only damage leaves a hole.

use super::survey::{BadSpan, Fault, Survey};
use crate::format::header::FRAMES_START;
use crate::format::position::Position;

/// A segment of the unproven part of the log, or the last proven one, in the order of the log.
pub(crate) struct Surveyed<'a> {
    /// It stands for the segments from here on, up to its number: itself alone unless it was rewritten.
    pub first: u32,
    pub number: u32,
    /// It was durable before it had its name.
    pub rewritten: bool,
    pub survey: &'a Survey,
    /// The file is shorter than it was made, and no frame says that it was cut to its end.
    pub short: bool,
    /// The file that its last frame names is not what it was when that frame was written: durable, whole, and holding
    /// a segment or nothing.
    pub next_lost: bool,
}

impl Surveyed<'_> {
    fn stands_for(&self, number: u32) -> bool {
        (self.first..=self.number).contains(&number)
    }
}

/// Damage in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DamagedSpan {
    /// Which of the surveyed segments.
    pub at: usize,
    pub start: u32,
    pub end: u32,
    pub what: &'static str,
}

/// Where the log ends, and what is damaged before that.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// In the order of the log.
    pub damaged: Vec<DamagedSpan>,
    /// Segments that belong to the log, as indexes in ascending order.
    pub segments: Vec<usize>,
    /// Where the log ends in the last of them.
    pub end: u32,
    /// The log ends below what is proven: its end is missing, and no more may be appended to this segment.
    pub cut_short: bool,
    /// A frame that ends at `end` may be part of a run whose rest is damaged, and counts all the same.
    pub ends_in_damage: bool,
}

impl Verdict {
    fn damage(&mut self, at: usize, start: u32, end: u32, what: &'static str) {
        self.damaged.push(DamagedSpan { at, start, end, what });
    }
}

/// Passes the verdict on `segments`. `proof` is what the cursor proves; their own marks are added. `same_boot` says
/// that their writer ran in this boot of the machine and saw no sync fail.
pub(crate) fn verdict(segments: &[Surveyed<'_>], proof: Position, same_boot: bool) -> Verdict {
    let whole_log = proof == Position::default();
    let marks = segments.iter().filter_map(|segment| segment.survey.mark).max();
    let rewritten = segments.iter().filter(|segment| segment.rewritten);
    let rewritten = rewritten.map(|segment| Position::new(segment.number, u32::MAX)).max();
    let proof = marks.max(rewritten).map_or(proof, |proven| proven.max(proof));
    let mut verdict = Verdict::default();
    let mut at = 0;
    while let Some(Surveyed { number, survey, .. }) = segments.get(at) {
        verdict.segments.push(at);
        verdict.end = survey.end;
        verdict.ends_in_damage = false;
        let proven = |offset: u32| Position::new(*number, offset) < proof;
        let later = segments.len() > at + 1;
        for span in &survey.bad {
            if proven(span.start) || (same_boot && is_damage_in_same_boot(span, later)) {
                verdict.damage(at, span.start, span.end, describe(span.fault));
                if !span.followed {
                    verdict.end = span.end;
                    verdict.ends_in_damage = true;
                }
            } else {
                verdict.end = span.start;
                if segments[at].short && survey.next.is_none() {
                    verdict.cut_short = true;
                    verdict.damage(at, span.start, span.end, "the end of the log is missing");
                }
                return verdict;
            }
        }
        // Without a cursor: a file that is not there any more was dropped, and the log went on behind it.
        let dropped = whole_log && segments[at].next_lost;
        let Some(next) = following(segments, at, proof, same_boot || dropped) else { break };
        let goes_on = survey.next.is_some_and(|named| segments[next].stands_for(named));
        if survey.next.is_none() {
            let what = "the end of the segment is missing";
            verdict.damage(at, verdict.end, verdict.end, what);
        } else if !goes_on {
            let what = "the segment that follows is missing";
            verdict.damage(at, verdict.end, verdict.end, what);
        }
        at = next;
    }
    if let Some(&last) = verdict.segments.last() {
        let number = segments[last].number;
        // What is proven beyond the end is gone, unless it is only the start of a segment that holds nothing yet.
        let next_start = segments[last].survey.next.map(|next| Position::new(next, FRAMES_START));
        let reached = next_start.unwrap_or(Position::new(number, verdict.end));
        let Surveyed { short, next_lost, .. } = segments[last];
        if reached < proof || (short && next_start.is_none()) {
            verdict.cut_short = true;
            let end = if proof.segment() == number { proof.offset() } else { verdict.end };
            let end = end.max(verdict.end);
            verdict.damage(last, verdict.end, end, "the end of the log is missing");
        } else if next_start.is_some() && next_lost {
            let what = "the segment in which the log goes on is missing";
            verdict.damage(last, verdict.end, verdict.end, what);
        }
    }
    verdict
}

fn is_damage_in_same_boot(span: &BadSpan, later: bool) -> bool {
    span.fault != Fault::Zero || span.followed || later
}

fn describe(fault: Fault) -> &'static str {
    match fault {
        Fault::Zero => "zeros where frames were",
        Fault::Header => "a frame's header does not verify",
        Fault::Body => "a frame's content does not verify",
    }
}

/// The segment in which the log goes on behind `segments[at]`, if it does.
fn following(
    segments: &[Surveyed<'_>],
    at: usize,
    proof: Position,
    same_boot: bool,
) -> Option<usize> {
    let survey = segments[at].survey;
    if let Some(next) = survey.next {
        let named = segments.iter().position(|segment| segment.stands_for(next));
        if named.is_some() {
            return named.filter(|named| *named > at);
        }
    }
    // The way is broken: it is followed only as far as something proves that there was one.
    let next = at + 1;
    let number = segments.get(next)?.number;
    let proven = Position::new(number, FRAMES_START) < proof;
    (proven || same_boot).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(end: u32, next: Option<u32>) -> Survey {
        Survey { end, used: end, next, ..Survey::default() }
    }

    fn bad(start: u32, end: u32, fault: Fault, followed: bool) -> BadSpan {
        BadSpan { start, end, fault, followed, open_run: None }
    }

    fn surveyed(surveys: &[(u32, Survey)]) -> Vec<Surveyed<'_>> {
        let whole = |(number, survey)| Surveyed {
            first: number,
            number,
            rewritten: false,
            survey,
            short: false,
            next_lost: false,
        };
        surveys.iter().map(|(number, survey)| (*number, survey)).map(whole).collect()
    }

    fn judge(surveys: &[(u32, Survey)], proof: Position, same_boot: bool) -> Verdict {
        verdict(&surveyed(surveys), proof, same_boot)
    }

    #[test]
    fn a_file_that_was_cut_off_is_damage_though_nothing_proves_its_end() {
        let surveys = [(3, whole(5000, None))];
        let mut segments = surveyed(&surveys);
        segments[0].short = true;
        let verdict = verdict(&segments, Position::new(3, 4500), false);
        assert!(verdict.cut_short);
        assert_eq!((verdict.damaged[0].start, verdict.damaged[0].end), (5000, 5000));
    }

    #[test]
    fn a_named_segment_that_is_missing_is_damage_though_nothing_proves_its_content() {
        let surveys = [(3, whole(5000, Some(4)))];
        let mut segments = surveyed(&surveys);
        segments[0].next_lost = true;
        let verdict = verdict(&segments, Position::new(3, 4500), false);
        assert_eq!(verdict.damaged[0].what, "the segment in which the log goes on is missing");
    }

    fn with_bad(span: BadSpan) -> Survey {
        let end = if span.followed { span.end + 800 } else { span.start };
        Survey { bad: vec![span], ..whole(end, None) }
    }

    #[test]
    fn a_bad_frame_below_the_proof_is_damage_and_is_skipped() {
        for fault in [Fault::Zero, Fault::Header, Fault::Body] {
            let survey = with_bad(bad(5000, 5064, fault, true));
            let verdict = judge(&[(3, survey)], Position::new(3, 5864), false);
            assert_eq!(verdict.damaged.len(), 1);
            let what = match fault {
                Fault::Zero => "zeros where frames were",
                Fault::Header => "a frame's header does not verify",
                Fault::Body => "a frame's content does not verify",
            };
            assert_eq!(verdict.damaged[0].what, what);
            assert_eq!((verdict.end, verdict.cut_short), (5864, false));
        }
    }

    #[test]
    fn a_missing_segment_below_the_proof_is_damage_and_is_skipped() {
        let surveys = [(3, whole(9000, Some(4))), (5, whole(7000, None))];
        let verdict = judge(&surveys, Position::new(5, 6000), false);
        assert_eq!(verdict.segments, [0, 1]);
        assert_eq!(verdict.damaged[0].what, "the segment that follows is missing");
        assert_eq!(verdict.end, 7000);
    }

    #[test]
    fn zeros_above_the_proof_are_the_end_and_what_follows_is_unfinished() {
        let survey = with_bad(bad(5000, 5064, Fault::Zero, false));
        for same_boot in [false, true] {
            let verdict = judge(&[(3, survey_clone(&survey))], Position::new(3, 5000), same_boot);
            assert_eq!((verdict.end, verdict.damaged.len()), (5000, 0));
        }
    }

    #[test]
    fn a_bad_frame_above_the_proof_in_the_same_boot_is_damage() {
        for followed in [false, true] {
            let survey = with_bad(bad(5000, 5064, Fault::Body, followed));
            let verdict = judge(&[(3, survey)], Position::new(3, 4096), true);
            assert_eq!(verdict.damaged.len(), 1);
            assert_eq!(verdict.end, if followed { 5864 } else { 5064 });
        }
    }

    #[test]
    fn a_hole_above_the_proof_in_the_same_boot_is_damage() {
        let survey = with_bad(bad(5000, 5064, Fault::Zero, true));
        let verdict = judge(&[(3, survey)], Position::new(3, 4096), true);
        assert_eq!((verdict.damaged.len(), verdict.end), (1, 5864));
    }

    #[test]
    fn a_bad_frame_above_the_proof_in_another_boot_is_the_end() {
        for fault in [Fault::Zero, Fault::Header, Fault::Body] {
            let survey = with_bad(bad(5000, 5064, fault, true));
            let surveys = [(3, survey), (4, whole(9000, None))];
            let verdict = judge(&surveys, Position::new(3, 4096), false);
            assert_eq!((&verdict.segments[..], verdict.end), (&[0][..], 5000));
            assert_eq!(verdict.damaged, []);
        }
    }

    #[test]
    fn zeros_at_the_end_of_a_segment_that_others_follow_are_damage_in_the_same_boot() {
        let survey = with_bad(bad(5000, 5064, Fault::Zero, false));
        let surveys = [(3, survey), (4, whole(9000, None))];
        let verdict = judge(&surveys, Position::new(3, 4096), true);
        assert_eq!((&verdict.segments[..], verdict.end), (&[0, 1][..], 9000));
        assert_eq!(verdict.damaged[0].start, 5000);
    }

    /// A log without any cursor, of segment 3, of which `next` is said, and of 5.
    fn judge_without_cursor(next: Option<u32>, next_lost: bool) -> Vec<usize> {
        let surveys = [(3, whole(9000, next)), (5, whole(7000, None))];
        let mut segments = surveyed(&surveys);
        segments[0].next_lost = next_lost;
        verdict(&segments, Position::default(), false).segments
    }

    #[test]
    fn without_a_cursor_the_log_goes_on_behind_a_dropped_segment() {
        assert_eq!(judge_without_cursor(Some(4), true), [0, 1]);
        assert_eq!(judge_without_cursor(None, false), [0]);
    }

    #[test]
    fn a_proof_that_ends_where_a_segment_begins_proves_nothing_in_it() {
        let surveys = [(3, whole(5000, None)), (4, whole(9000, None))];
        let verdict = judge(&surveys, Position::new(4, FRAMES_START), false);
        assert_eq!((&verdict.segments[..], verdict.cut_short), (&[0][..], true));
    }

    #[test]
    fn a_segment_that_names_itself_leads_nowhere() {
        let verdict = judge(&[(3, whole(5000, Some(3)))], Position::new(3, 4500), true);
        assert_eq!((&verdict.segments[..], verdict.end), (&[0][..], 5000));
    }

    #[test]
    fn a_mark_in_a_later_frame_or_segment_proves_what_lies_before_it() {
        let first = with_bad(bad(5000, 5064, Fault::Header, true));
        let marked = Survey { mark: Some(Position::new(3, 5800)), ..whole(9000, None) };
        let verdict = judge(&[(3, first), (4, marked)], Position::new(3, 4096), false);
        assert_eq!(verdict.damaged[0].start, 5000);
    }

    #[test]
    fn segments_behind_an_end_that_names_no_successor_are_set_aside() {
        let surveys = [(3, whole(5000, None)), (4, whole(9000, None))];
        let verdict = judge(&surveys, Position::new(3, 5000), false);
        assert_eq!((&verdict.segments[..], verdict.end), (&[0][..], 5000));
    }

    #[test]
    fn a_stray_segment_is_passed_over_for_the_one_that_is_named() {
        let surveys = [(3, whole(5000, Some(7))), (4, whole(9000, None)), (7, whole(6000, None))];
        let verdict = judge(&surveys, Position::new(3, 5000), false);
        assert_eq!((&verdict.segments[..], verdict.end), (&[0, 2][..], 6000));
        assert_eq!(verdict.damaged, []);
    }

    #[test]
    fn an_end_below_the_proof_is_damage() {
        let verdict = judge(&[(3, whole(5000, None))], Position::new(3, 6000), false);
        assert!(verdict.cut_short);
        assert_eq!((verdict.damaged[0].start, verdict.damaged[0].end), (5000, 6000));
    }

    #[test]
    fn a_roll_whose_new_segment_is_not_there_yet_is_the_end() {
        let verdict = judge(&[(3, whole(5000, Some(4)))], Position::new(3, 4500), true);
        assert_eq!((verdict.end, verdict.cut_short, verdict.damaged.len()), (5000, false, 0));
    }

    fn survey_clone(survey: &Survey) -> Survey {
        Survey { bad: survey.bad.clone(), ..whole(survey.end, None) }
    }
}
