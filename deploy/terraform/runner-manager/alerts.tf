# Alerts on lines that the service logs. The texts are the service's own: a check holds each against its source.

locals {
  alert_channels = try(var.alerts.notification_channels, [])
  # The service's own lines, and Cloud Run's line for each request.
  service_filter = "resource.type=\"cloud_run_revision\" AND resource.labels.service_name=\"${var.service_name}\""
  log_filter     = "${local.service_filter} AND log_id(\"run.googleapis.com/stdout\")"
  resync_minutes = try(var.alerts.resync_minutes, 0)
  request_filter = "${local.service_filter} AND log_id(\"run.googleapis.com/requests\")"

  texts = {
    start = [
      "could not be started: ",
      "its start failed at once: ",
      "is down while a job waits for it",
    ]
    runner = [
      "but GitHub knows no runner named ",
      "but its runner is offline",
    ]
  }

  # One alert for each line, an hour apart at least.
  log_alerts = {
    start = {
      name   = "a VM was not started"
      filter = "severity>=WARNING AND jsonPayload.message=~\"${join("|", local.texts.start)}\""
      advice = "A job waits for it; the service tries again every few minutes. A stockout ends by itself or with another zone or machine type; a quota has to be raised; a missing permission has to be granted."
    }
    runner = {
      name   = "a VM is up without its runner"
      filter = "severity>=ERROR AND jsonPayload.message=~\"${join("|", local.texts.runner)}\""
      advice = "The runner's log, on the VM: sudo journalctl --unit runner-vm. The line above says what else to do."
    }
    error = {
      name   = "an error"
      filter = "severity>=ERROR AND NOT jsonPayload.message=~\"${join("|", concat(local.texts.start, local.texts.runner))}\""
      advice = "The service says what failed, and what to do."
    }
  }
}

resource "google_monitoring_alert_policy" "log" {
  for_each = var.alerts == null ? {} : local.log_alerts

  project               = var.project
  display_name          = "${var.service_name}: ${each.value.name}"
  combiner              = "OR"
  notification_channels = local.alert_channels

  conditions {
    display_name = each.value.name
    condition_matched_log {
      filter = "${local.log_filter} AND ${each.value.filter}"
      label_extractors = {
        line = "EXTRACT(jsonPayload.message)"
      }
    }
  }

  alert_strategy {
    auto_close = "86400s"
    notification_rate_limit {
      period = "3600s"
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "$${log.extracted_label.line}\n\n${each.value.advice}"
  }

  depends_on = [google_project_service.this]
}

resource "google_logging_metric" "unknown" {
  count = var.alerts == null ? 0 : 1

  project     = var.project
  name        = "${var.service_name}/unknown"
  description = "Passes that ended in unknown: GitHub could not be queried about the VM."
  filter      = "${local.log_filter} AND jsonPayload.outcome=\"unknown\""

  label_extractors = {
    vm = "EXTRACT(jsonPayload.vmName)"
  }

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
    labels {
      key = "vm"
    }
  }

  depends_on = [google_project_service.this]
}

resource "google_monitoring_alert_policy" "unknown" {
  count = var.alerts == null ? 0 : 1

  project               = var.project
  display_name          = "${var.service_name}: a VM cannot be judged"
  combiner              = "OR"
  notification_channels = local.alert_channels

  conditions {
    display_name = "unknown for half an hour"
    condition_threshold {
      filter          = "metric.type=\"logging.googleapis.com/user/${google_logging_metric.unknown[0].name}\" AND resource.type=\"cloud_run_revision\""
      comparison      = "COMPARISON_GT"
      threshold_value = 0
      # Passes are up to ten minutes apart, so a quarter of an hour has one of them.
      duration                = "1800s"
      evaluation_missing_data = "EVALUATION_MISSING_DATA_INACTIVE"
      aggregations {
        alignment_period     = "900s"
        per_series_aligner   = "ALIGN_DELTA"
        cross_series_reducer = "REDUCE_SUM"
        group_by_fields      = ["metric.label.vm"]
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "For half an hour GitHub could not be queried about the VM, so it is not stopped. The service's log says which call failed: GitHub may be down, the rate limit used up, or a permission of the App gone."
  }

  depends_on = [time_sleep.metrics]
}

resource "google_logging_metric" "refused" {
  count = var.alerts == null ? 0 : 1

  project     = var.project
  name        = "${var.service_name}/refused-deliveries"
  description = "Webhooks that were not answered with success. GitHub does not repeat them by itself."
  filter      = "${local.request_filter} AND httpRequest.requestUrl=~\"/github/webhook([?]|$)\" AND httpRequest.status>=400"

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
  }

  depends_on = [google_project_service.this]
}

resource "google_monitoring_alert_policy" "refused" {
  count = var.alerts == null ? 0 : 1

  project               = var.project
  display_name          = "${var.service_name}: webhooks are refused"
  combiner              = "OR"
  notification_channels = local.alert_channels

  conditions {
    display_name = "more than ${var.alerts.refused_deliveries} in a quarter of an hour"
    condition_threshold {
      filter          = "metric.type=\"logging.googleapis.com/user/${google_logging_metric.refused[0].name}\" AND resource.type=\"cloud_run_revision\""
      comparison      = "COMPARISON_GT"
      threshold_value = var.alerts.refused_deliveries
      # evaluation_missing_data would need a duration, which a single window does not have.
      duration = "0s"
      aggregations {
        alignment_period     = "900s"
        per_series_aligner   = "ALIGN_DELTA"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "The line in the service's log, and the webhook's Recent Deliveries, say why: most often the webhook has another secret. Deliveries can be repeated there for three days."
  }

  depends_on = [time_sleep.metrics]
}

resource "google_logging_metric" "resync" {
  count = local.resync_minutes > 0 ? 1 : 0

  project     = var.project
  name        = "${var.service_name}/resync"
  description = "Resyncs that ended. The first one begins the watch over those that follow."
  filter      = "${local.log_filter} AND jsonPayload.message=~\"^resync: \""

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
  }

  depends_on = [google_project_service.this]
}

resource "google_monitoring_alert_policy" "resync" {
  count = local.resync_minutes > 0 ? 1 : 0

  project               = var.project
  display_name          = "${var.service_name}: no resync"
  combiner              = "OR"
  notification_channels = local.alert_channels

  conditions {
    display_name = "none for ${local.resync_minutes} minutes"
    condition_threshold {
      filter          = "metric.type=\"logging.googleapis.com/user/${google_logging_metric.resync[0].name}\" AND resource.type=\"cloud_run_revision\""
      comparison      = "COMPARISON_LT"
      threshold_value = 1
      # A window without a resync, and as long again until the alert. Without a line there may be zeros or no data.
      duration                = "${local.resync_minutes * 30}s"
      evaluation_missing_data = "EVALUATION_MISSING_DATA_ACTIVE"
      aggregations {
        alignment_period     = "${local.resync_minutes * 30}s"
        per_series_aligner   = "ALIGN_DELTA"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "Lost webhooks and tasks are not made up for. The job of Cloud Scheduler says why: it is paused or gone, or it carries an older secret. gcloud scheduler jobs describe ${var.service_name}-reconcile --location ${var.region}"
  }

  depends_on = [time_sleep.metrics]
}

# Cloud Monitoring refuses a policy on a metric that it does not know yet.
resource "time_sleep" "metrics" {
  count = var.alerts == null ? 0 : 1

  create_duration = var.propagation.metrics

  triggers = {
    unknown = google_logging_metric.unknown[0].id
    refused = google_logging_metric.refused[0].id
    resync  = join("", google_logging_metric.resync[*].id)
  }
}

resource "google_monitoring_alert_policy" "up" {
  count = var.alerts == null ? 0 : 1

  project               = var.project
  display_name          = "${var.service_name}: a VM is up for long"
  combiner              = "OR"
  notification_channels = local.alert_channels

  conditions {
    display_name = "up for ${var.alerts.vm_up_hours} hours"
    condition_threshold {
      filter          = "resource.type=\"gce_instance\" AND metric.type=\"compute.googleapis.com/instance/uptime_total\" AND metric.labels.instance_name=one_of(${join(",", [for vm in local.vms : "\"${vm.name}\""])})"
      comparison      = "COMPARISON_GT"
      threshold_value = var.alerts.vm_up_hours * 3600
      duration        = "0s"
      aggregations {
        alignment_period   = "300s"
        per_series_aligner = "ALIGN_MAX"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "GET /runner/status says why it is up: jobs, a hold, or that GitHub cannot be queried. A VM that was started by other means is not watched until a job comes for it, or POST /runner/release."
  }

  depends_on = [google_project_service.this]
}
