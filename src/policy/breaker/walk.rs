//! A random walk: whatever happens in whatever order, what must hold holds.

use proptest::prelude::*;

use super::tests::settings;
use super::*;
use crate::clock::{Clock, SystemClock};

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    Admit,
    /// The answer of one of the attempts that are out.
    Answer(usize, Answer),
    Wait(u64),
    Pause(Option<u64>),
    Resume,
    Trip(Option<u64>),
    Reset,
    Secret(u64),
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Succeeded,
    Failed,
    Refused,
    Withdrawn,
}

fn step() -> impl Strategy<Value = Step> {
    let answer = prop_oneof![
        8 => Just(Answer::Succeeded),
        4 => Just(Answer::Failed),
        1 => Just(Answer::Refused),
        2 => Just(Answer::Withdrawn),
    ];
    prop_oneof![
        20 => Just(Step::Admit),
        20 => (0..64_usize, answer).prop_map(|(which, answer)| Step::Answer(which, answer)),
        8 => (0..40_u64).prop_map(Step::Wait),
        1 => Just(Step::Wait(4000)),
        1 => proptest::option::of(1..60_u64).prop_map(Step::Pause),
        1 => Just(Step::Resume),
        1 => proptest::option::of(1..60_u64).prop_map(Step::Trip),
        1 => Just(Step::Reset),
        1 => (0..3_u64).prop_map(Step::Secret),
    ]
}

/// What an observer with a good memory knows: which attempts are out, and since when.
struct Observer {
    breaker: Breaker,
    now: Instant,
    version: u64,
    /// For each attempt that is out, in which age it was admitted, and with which secret.
    out: Vec<(usize, u64)>,
    /// An age ends whenever the breaker opens, is held, or is reset.
    age: usize,
    /// Attempts of former ages that ended well or were withdrawn in this one: each may have been
    /// taken for one of this age, and makes room for one more.
    taken: usize,
}

impl Observer {
    fn new(probes: usize) -> Self {
        let breaker = Breaker::new(Settings { probes, ..settings() });
        Self { breaker, now: SystemClock.now(), version: 0, out: Vec::new(), age: 0, taken: 0 }
    }

    fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let before = self.breaker.phase;
        match *step {
            Step::Admit => return self.admit(),
            Step::Answer(which, answer) => self.answer(which, answer),
            Step::Wait(seconds) => self.now += Duration::from_secs(seconds),
            Step::Pause(seconds) => {
                let until = seconds.map(|s| self.now + Duration::from_secs(s));
                self.breaker.pause(Some(Pin { until, reason: String::new() }));
            }
            Step::Resume => self.breaker.pause(None),
            Step::Trip(seconds) => self.breaker.trip(self.now, seconds.map(Duration::from_secs)),
            Step::Reset => self.breaker.reset(),
            Step::Secret(version) => {
                self.version = version;
                self.breaker.secret(version, self.now);
            }
        }
        let turned = |p: Phase| matches!(p, Phase::Open { .. } | Phase::Held { .. });
        let tripped = matches!(step, Step::Trip(_));
        let opened = turned(self.breaker.phase) && (tripped || !turned(before));
        if opened || matches!(step, Step::Reset) {
            self.age += 1;
            self.taken = 0;
        }
        let (running, late) = (self.breaker.running, self.breaker.late);
        prop_assert_eq!(running + late, self.out.len(), "each attempt is counted once");
        Ok(())
    }

    fn admit(&mut self) -> Result<(), TestCaseError> {
        let (state, ramp) = (self.breaker.state(self.now), self.breaker.ramp(self.now));
        let (running, late) = (self.breaker.running, self.breaker.late);
        let admitted = self.breaker.admit(self.now);
        let limit = match state {
            State::Open { .. } | State::Held | State::Paused => 0,
            State::HalfOpen => self.breaker.settings.probes,
            State::Closed => ramp.unwrap_or(usize::MAX),
        };
        if admitted {
            self.out.push((self.age, self.version));
            prop_assert!(running < limit, "{:?} admitted beyond {}", state, limit);
            let fresh = self.out.iter().filter(|(age, _)| *age == self.age).count();
            prop_assert!(fresh <= limit.saturating_add(self.taken), "{fresh} of {limit}");
        } else {
            prop_assert!(state != State::Closed || running >= limit, "refused without a reason");
        }
        prop_assert_eq!(
            self.breaker.running + self.breaker.late,
            running + late + usize::from(admitted)
        );
        if let Some(wakes) = self.breaker.wakes(self.now) {
            prop_assert!(!admitted && wakes > self.now);
        }
        Ok(())
    }

    fn answer(&mut self, which: usize, answer: Answer) {
        if self.out.is_empty() {
            return;
        }
        let (age, secret) = self.out.swap_remove(which % self.out.len());
        let before = self.breaker.phase;
        match answer {
            Answer::Succeeded => self.breaker.succeeded(self.now),
            Answer::Failed => self.breaker.failed(self.now, None),
            Answer::Refused => self.breaker.failed(self.now, Some(secret)),
            Answer::Withdrawn => self.breaker.withdrawn(),
        }
        let well = matches!(answer, Answer::Succeeded | Answer::Withdrawn);
        if age < self.age && well {
            self.taken += 1;
        }
        let resting = matches!(before, Phase::Open { .. } | Phase::Held { .. });
        if resting {
            // Only `admit` ends a rest: what answers during it began before it.
            assert_eq!(format!("{before:?}"), format!("{:?}", self.breaker.phase));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_happens_the_breaker_keeps_its_limits(
        probes in 1..4_usize,
        steps in proptest::collection::vec(step(), 1..300),
    ) {
        let mut observer = Observer::new(probes);
        for step in &steps {
            observer.take(step)?;
        }
    }

    #[test]
    fn a_breaker_left_alone_long_enough_admits_again(
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let mut observer = Observer::new(1);
        for step in &steps {
            observer.take(step)?;
        }
        while !observer.out.is_empty() {
            observer.take(&Step::Answer(0, Answer::Withdrawn))?;
        }
        observer.breaker.pause(None);
        let now = observer.breaker.wakes(observer.now).unwrap_or(observer.now);
        prop_assert!(observer.breaker.admit(now), "{:?}", observer.breaker);
    }
}
