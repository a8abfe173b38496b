//! Random days of the whole system.
//!
//! A [`Day`] is drawn from a seed and played on the real service and the emulators; [`checks`] compares its history
//! with the promises, each with a bound. The same seed gives the same day, call for call. A day that breaks a promise
//! is shrunk until nothing can be taken away, and printed.
//!
//! `SIM_RUNS=1000 SIM_SEED=1 cargo test --release --test it simulation` plays more of them.

mod checks;
mod day;
mod every;
mod play;
mod pools;
mod regressions;

use checks::Figures;
use day::{Day, Profile};

/// The days of each profile that a plain `cargo test` plays.
const RUNS: u64 = 40;

fn number(name: &str, default: u64) -> u64 {
    std::env::var_os(name).and_then(|value| value.to_str()?.parse().ok()).unwrap_or(default)
}

/// Plays a day on a clock of its own and returns its history and the broken promise, if any.
fn play(day: &Day) -> (String, Result<Figures, String>) {
    on_a_paused_clock(play::play(day))
}

fn on_a_paused_clock<T>(story: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().unwrap().block_on(story)
}

/// Removes operations as long as the day still breaks a promise.
fn smallest(mut day: Day) -> Day {
    let mut size = day.ops.len().div_ceil(2);
    while size > 0 {
        let mut start = 0;
        while start < day.ops.len() {
            let mut fewer = day.clone();
            fewer.ops.drain(start..(start + size).min(day.ops.len()));
            if play(&fewer).1.is_err() { day = fewer } else { start += size }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    day
}

/// Plays the days of a profile.
fn days(profile: Profile) {
    let (runs, first) = (number("SIM_RUNS", RUNS), number("SIM_SEED", 1));
    let mut worst = Figures::default();
    for seed in first..first + runs {
        let day = Day::draw(seed, profile);
        let (_, result) = play(&day);
        match result {
            Ok(figures) => worst = worst.worst(&figures),
            Err(broken) => {
                let day = smallest(day);
                let (story, result) = play(&day);
                let still = result.err().unwrap_or(broken);
                panic!("{profile:?}, seed {seed}: {still}\n{day:?}\n{story}");
            }
        }
    }
    #[expect(clippy::print_stdout, reason = "the figures of many runs, with --nocapture")]
    {
        println!("{profile:?}: {runs} days from seed {first}: {worst}");
    }
}

#[test]
fn a_the_same_seed_gives_the_same_day() {
    for profile in Profile::EACH {
        let day = Day::draw(4711, profile);
        assert_eq!(play(&day), play(&day), "{profile:?}");
    }
}

#[test]
fn days_without_faults() {
    days(Profile::None);
}

#[test]
fn days_of_losses_and_crashes() {
    days(Profile::Loss);
}

#[test]
fn days_of_outages() {
    days(Profile::Outage);
}

#[test]
fn days_without_a_permission() {
    days(Profile::Permission);
}

#[test]
fn days_of_stale_words() {
    days(Profile::Stale);
}

#[test]
fn days_of_everything() {
    days(Profile::All);
}

#[test]
fn days_of_everything_with_resyncs() {
    days(Profile::Resyncs);
}
