//! What Linux knows of a process: the time that it had a CPU for, and the memory that it alone has.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use runner_manager::clients::transport::BoxError;

/// In kibibytes.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// The proportional set size: pages that it shares with others count in part.
    pub(crate) pss: u64,
    /// That part of it that is no file's: heap, stack, and data that was written to. The rest is the program and its
    /// libraries, which the kernel reads anew when it needs the memory.
    pub(crate) anonymous: u64,
}

/// A child, killed when this is dropped.
pub(crate) struct Process(Child);

impl Process {
    /// Starts it; what it writes is thrown away.
    pub(crate) fn start(command: &mut Command) -> Result<Self, BoxError> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn()?))
    }

    /// How long its threads have had a CPU, all of them together.
    pub(crate) fn cpu_time(&self) -> Result<Duration, BoxError> {
        let mut all = Duration::ZERO;
        for thread in fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let times = fs::read_to_string(thread?.path().join("schedstat"))?;
            let on_cpu = times.split_whitespace().next().unwrap_or_default();
            all += Duration::from_nanos(on_cpu.parse()?);
        }
        Ok(all)
    }

    /// What it has in memory now.
    pub(crate) fn memory(&self) -> Result<Memory, BoxError> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0.id()))?;
        let kibibytes = |name: &str| -> Result<u64, BoxError> {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()).ok_or("not there")?;
            Ok(number.parse()?)
        };
        Ok(Memory { pss: kibibytes("Pss:")?, anonymous: kibibytes("Pss_Anon:")? })
    }

    /// Keeps it on this CPU from now on.
    pub(crate) fn pin_to(&self, cpu: usize) -> Result<(), BoxError> {
        pin(self.0.id(), cpu)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Keeps a process, with all the threads that it has, on one CPU.
pub(crate) fn pin(process: u32, cpu: usize) -> Result<(), BoxError> {
    let done = Command::new("taskset")
        .args(["-acp", &cpu.to_string(), &process.to_string()])
        .stdout(Stdio::null())
        .status()?;
    if done.success() { Ok(()) } else { Err("taskset failed".into()) }
}
