//! The stories: each lets something happen, watches until all is over, and says which promise it shows.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use tower::ServiceExt;

use super::Stage;
use crate::clock::Timestamp;
use crate::emulators::compute::Status;
use crate::emulators::github::{JobId, JobStatus};
use crate::routes;

/// The VM that the stories are about.
const VM: &str = "runner-1";

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// A promise that was broken, in words.
type Broken = String;

/// Tells every story; whether all promises were kept.
pub(super) async fn tell_all(stage: &Stage) -> bool {
    let mut kept = true;
    let mut number = 0;
    macro_rules! tell {
        ($title:literal, $about:literal, $promise:literal, $story:ident) => {
            number += 1;
            stage.narrator.title(number, $title, $about);
            let story = Story { stage, begun: stage.clock.now() };
            let told = match story.$story().await {
                Ok(()) => story.end().await,
                broken => broken,
            };
            kept &= told.is_ok();
            stage.narrator.verdict(told.as_ref().map(|()| $promise).map_err(String::as_str));
        };
    }
    tell!(
        "One job",
        "It is queued; the VM starts, runs it, is idle for as long as configured, and is stopped.",
        "the job got its runner, and the idle VM was stopped",
        one_job
    );
    tell!(
        "Two jobs in a row",
        "The second is over shortly before the stop that the first one scheduled is due.",
        "the last job counts: the earlier stop was superseded",
        two_jobs_in_a_row
    );
    tell!(
        "Two repositories on one VM",
        "A short job of one, and a long one of the other that still runs when the stop is due.",
        "the running job was not killed",
        two_repositories
    );
    tell!(
        "A job comes while the VM is stopping",
        "It cannot be started now, so a start check does it as soon as it can.",
        "the job was not stranded",
        a_job_while_stopping
    );
    tell!(
        "GitHub is down when the stop is due",
        "Nobody can tell whether the VM is needed, so it is not stopped.",
        "nothing was stopped blind, and nothing was left running",
        github_is_down
    );
    tell!(
        "A lost webhook",
        "GitHub's word that the job is completed never arrives. The lease made at the start takes its place.",
        "the VM did not leak",
        a_lost_completion
    );
    tell!(
        "A job that nobody was told of",
        "GitHub's word that it is queued never arrives. The sweep, which a scheduler asks for, finds it waiting.",
        "the job got its runner all the same",
        a_lost_job
    );
    kept
}

/// One story on the stage.
struct Story<'a> {
    stage: &'a Stage,
    begun: Timestamp,
}

impl Story<'_> {
    async fn one_job(&self) -> Result<(), Broken> {
        let job = self.queue("acme/app", minutes(2));
        self.completed(job).await
    }

    async fn two_jobs_in_a_row(&self) -> Result<(), Broken> {
        let first = self.queue("acme/app", minutes(1));
        self.completed(first).await?;
        self.stage.clock.sleep(seconds(30)).await;
        let second = self.queue("acme/app", seconds(10));
        self.completed(second).await?;
        let over = self.stage.clock.now();
        self.until("the VM is stopping", minutes(10), || self.status() == Status::Stopping).await?;
        let idle = self.stage.clock.now().since(over);
        if idle < seconds(55) { Err(format!("stopped after {} s", idle.as_secs())) } else { Ok(()) }
    }

    async fn two_repositories(&self) -> Result<(), Broken> {
        let short = self.queue("acme/app", minutes(1));
        self.completed(short).await?;
        let long = self.queue("acme/web", minutes(5));
        self.completed(long).await
    }

    async fn a_job_while_stopping(&self) -> Result<(), Broken> {
        let first = self.queue("acme/app", minutes(1));
        self.completed(first).await?;
        self.stage.narrator.aside("an operator stops the VM in the console");
        self.stage.cloud.compute.stop_by_hand(VM);
        self.until("the VM is stopping", minutes(1), || self.status() == Status::Stopping).await?;
        let job = self.queue("acme/app", minutes(1));
        self.completed(job).await
    }

    async fn github_is_down(&self) -> Result<(), Broken> {
        let job = self.queue("acme/app", minutes(1));
        self.completed(job).await?;
        self.stage.narrator.aside("GitHub's API answers 503 from here on");
        self.stage.cloud.github.outage(true);
        self.stage.clock.sleep(minutes(5)).await;
        let status = self.status();
        self.stage.narrator.aside("GitHub's API is back");
        self.stage.cloud.github.outage(false);
        if status == Status::Running {
            Ok(())
        } else {
            Err(format!("the VM was {status} while GitHub was down"))
        }
    }

    async fn a_lost_completion(&self) -> Result<(), Broken> {
        let job = self.queue("acme/app", minutes(1));
        self.until("the job runs", minutes(5), || self.job_is(job, JobStatus::InProgress)).await?;
        self.stage.clock.sleep(seconds(20)).await;
        self.stage.narrator.aside("the next webhook will be lost");
        self.stage.cloud.github.lose_next_webhook(1);
        self.completed(job).await
    }

    async fn a_lost_job(&self) -> Result<(), Broken> {
        self.stage.narrator.aside("the next webhook will be lost");
        self.stage.cloud.github.lose_next_webhook(1);
        let job = self.queue("acme/app", minutes(1));
        self.stage.clock.sleep(minutes(2)).await;
        self.stage.narrator.aside("the scheduler asks for a sweep: POST /runner/reconcile");
        let request = Request::post("/runner/reconcile").header("X-Runner-Secret", super::SECRET);
        let request = request.body(Body::empty()).map_err(|error| error.to_string())?;
        let Ok(answer) = routes::router(self.stage.app.clone()).oneshot(request).await;
        if !answer.status().is_success() {
            return Err(format!("the sweep was answered {}", answer.status()));
        }
        self.completed(job).await
    }

    /// Waits for the VM to be stopped and every task to be done, and looks back.
    async fn end(&self) -> Result<(), Broken> {
        let cloud = &self.stage.cloud;
        self.until("the VM is stopped", minutes(30), || self.status() == Status::Terminated)
            .await?;
        self.until("the queue is empty", minutes(30), || cloud.tasks.pending().is_empty()).await?;
        for (at, status, cause) in cloud.compute.history(VM) {
            let killed = cloud.github.jobs().into_iter().find(|job| {
                let ran = job.started_at.is_some_and(|start| start <= at)
                    && job.completed_at.is_none_or(|end| at < end);
                ran && job.runner_name.as_deref() == Some(VM) && status == Status::Stopping
            });
            if let Some(job) = killed.filter(|_| at >= self.begun) {
                return Err(format!("the VM was stopped while job {} ran ({cause})", job.id));
            }
        }
        Ok(())
    }

    fn queue(&self, repo: &str, runs: Duration) -> JobId {
        self.stage.cloud.github.queue_job(repo, ["self-hosted"], runs)
    }

    fn status(&self) -> Status {
        self.stage.cloud.compute.status(VM)
    }

    fn job_is(&self, job: JobId, status: JobStatus) -> bool {
        self.stage.cloud.github.job(job).status == status
    }

    async fn completed(&self, job: JobId) -> Result<(), Broken> {
        let what = format!("job {job} is completed");
        self.until(&what, minutes(30), || self.job_is(job, JobStatus::Completed)).await
    }

    async fn until(
        &self,
        what: &str,
        limit: Duration,
        seen: impl Fn() -> bool,
    ) -> Result<(), Broken> {
        let end = self.stage.clock.now() + limit;
        while !seen() {
            if self.stage.clock.now() > end {
                return Err(format!(
                    "{} minutes later it is still not true that {what}",
                    limit.as_secs() / 60
                ));
            }
            self.stage.clock.sleep(seconds(1)).await;
        }
        Ok(())
    }
}
