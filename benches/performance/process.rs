//! CPU time and memory of a process, from Linux's /proc.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use runner_manager::clients::transport::BoxError;

/// In kibibytes.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// The proportional set size: shared pages count in part.
    pub(crate) pss: u64,
    /// The anonymous part: heap, stack and written data. The rest is the program and its libraries, which the kernel can
    /// read again.
    pub(crate) anonymous: u64,
}

/// A child process, killed on drop.
pub(crate) struct Process(Child);

impl Process {
    /// Starts the command without its output.
    pub(crate) fn start(command: &mut Command) -> Result<Self, BoxError> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn()?))
    }

    /// The CPU time of all threads.
    pub(crate) fn cpu_time(&self) -> Result<Duration, BoxError> {
        let mut all = Duration::ZERO;
        for thread in fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let times = fs::read_to_string(thread?.path().join("schedstat"))?;
            let on_cpu = times.split_whitespace().next().unwrap_or_default();
            all += Duration::from_nanos(on_cpu.parse()?);
        }
        Ok(all)
    }

    pub(crate) fn memory(&self) -> Result<Memory, BoxError> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0.id()))?;
        let kibibytes = |name: &str| -> Result<u64, BoxError> {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name));
            let number = line
                .and_then(|line| line.split_whitespace().next())
                .ok_or("smaps_rollup lacks a field")?;
            Ok(number.parse()?)
        };
        Ok(Memory { pss: kibibytes("Pss:")?, anonymous: kibibytes("Pss_Anon:")? })
    }

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

/// Pins a process and its current threads to one CPU.
pub(crate) fn pin(process: u32, cpu: usize) -> Result<(), BoxError> {
    let done = Command::new("taskset")
        .args(["-acp", &cpu.to_string(), &process.to_string()])
        .stdout(Stdio::null())
        .status()?;
    if done.success() { Ok(()) } else { Err("taskset failed".into()) }
}
