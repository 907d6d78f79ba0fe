//! Prometheus's text format, for what is counted. Labels have values of the configuration in use and of enumerations
//! only, so that their number is bounded whatever clients do.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::View;
use super::view::Look;
use crate::telemetry::{
    CopyReason, Counter, DURATION_BOUNDS_S, EndpointCounters, HandshakeFailure, Latency,
    RouteCounters, STATUS_CLASSES, UserReason, WorkerCounters,
};

/// What the text is to be labelled with.
pub(super) const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Reasons for which a connection is shed, in the order of the counters.
const SHED_REASONS: [&str; 2] = ["connections", "connections_per_address"];

/// Record layers, in the order of the counters.
const TLS_PATHS: [&str; 3] = ["kernel", "user", "none"];

type Labels = Vec<(&'static str, String)>;

/// All metrics as text.
pub(super) fn render(view: &Arc<View>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("tlsplice");
    registry.register_collector(Box::new(Exposition(Arc::clone(view))));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Exposition(Arc<View>);

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let view = &*self.0;
        let look = view.look();
        let out = &mut encoder;
        process(out, view)?;
        connections(out, view, &look)?;
        requests(out, view, &look)?;
        upstreams(out, view, &look)?;
        bytes(out, &look)?;
        kernel(out, view, &look)
    }
}

fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    samples: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in samples {
        if labels.is_empty() {
            family.encode_counter::<NoLabelSet, u64, f64>(&value, None)?;
        } else {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, f64>(&value, None)?;
        }
    }
    Ok(())
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    samples: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in samples {
        if labels.is_empty() {
            family.encode_gauge(&value)?;
        } else {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
    }
    Ok(())
}

fn one(value: u64) -> [(Labels, u64); 1] {
    [(Labels::new(), value)]
}

/// The sums over all workers of counters that have a label each.
fn labelled<'a, const N: usize>(
    view: &'a View,
    key: &'static str,
    labels: [&'static str; N],
    of: impl Fn(&'a WorkerCounters) -> &'a [Counter] + 'a,
) -> impl Iterator<Item = (Labels, u64)> + 'a {
    labels.into_iter().enumerate().map(move |(index, label)| {
        let sum = view.workers.iter().map(|worker| of(worker)[index].get()).sum();
        (vec![(key, label.to_owned())], sum)
    })
}

fn process(out: &mut DescriptorEncoder<'_>, view: &View) -> fmt::Result {
    let build = vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("arch", std::env::consts::ARCH.to_owned()),
    ];
    gauges(out, ("build_info", "The build that runs"), [(build, 1)])?;
    gauges(out, ("uptime_seconds", "Time since the start"), one(view.began.elapsed().as_secs()))?;
    gauges(out, ("workers", "Worker threads"), one(view.workers.len() as u64))?;
    let draining = u64::from(!view.is_serving());
    gauges(out, ("draining", "1 while the gateway is being stopped"), one(draining))?;
    let dropped = view.dropped_lines.get();
    counters(out, ("access_log_dropped_lines", "Lines that a slow disk has cost"), one(dropped))
}

fn connections(out: &mut DescriptorEncoder<'_>, view: &View, look: &Look) -> fmt::Result {
    let by_worker = |of: &dyn Fn(usize) -> u64| -> Vec<(Labels, u64)> {
        let sample = |index: usize| (vec![("worker", index.to_string())], of(index));
        (0..view.workers.len()).map(sample).collect()
    };
    let open = by_worker(&|index| look.seen[index].live.len() as u64);
    gauges(out, ("connections", "Clients' connections open now"), open)?;
    let accepted = by_worker(&|index| view.workers[index].accepted.get());
    counters(out, ("connections_accepted", "Clients' connections admitted"), accepted)?;
    let shed = labelled(view, "reason", SHED_REASONS, |worker| &worker.shed);
    counters(out, ("connections_shed", "Connections closed at once, by the limit reached"), shed)?;
    let established = labelled(view, "tls", TLS_PATHS, |worker| &worker.established);
    let help = "Connections ready for requests, by where the TLS record layer runs";
    counters(out, ("connections_established", help), established)?;
    let failures =
        labelled(view, "cause", HandshakeFailure::LABELS, |worker| &worker.handshake_failures);
    counters(out, ("handshake_failures", "TLS handshakes that came to nothing"), failures)?;
    let stayed = labelled(view, "reason", UserReason::LABELS, |worker| &worker.tls_fallbacks);
    let help = "TLS connections whose record layer stayed in user space";
    counters(out, ("tls_fallbacks", help), stayed)?;
    counters(out, ("tls_key_updates", "TLS keys changed"), one(look.moved.key_updates))
}

fn requests(out: &mut DescriptorEncoder<'_>, view: &View, look: &Look) -> fmt::Result {
    let routes = view.routes(look);
    let by_status = routes.iter().flat_map(|(route, workers)| {
        STATUS_CLASSES.iter().enumerate().map(move |(class, &status)| {
            let sum = workers.iter().map(|counters| counters.requests[class].get()).sum();
            (vec![("route", route.clone()), ("status", status.to_owned())], sum)
        })
    });
    let help = "Requests and tunnels that are over, by route and class of status";
    counters(out, ("requests", help), by_status)?;
    let tunnels = routes.iter().map(|(route, workers)| {
        let sum = workers.iter().map(|counters| counters.tunnels.get()).sum();
        (vec![("route", route.clone())], sum)
    });
    counters(out, ("tunnels", "WebSocket tunnels that are over"), tunnels)?;
    durations(out, &routes)?;
    let copies = labelled(view, "reason", CopyReason::LABELS, |worker| &worker.copies);
    counters(out, ("copied_exchanges", "Requests and tunnels of which nothing was spliced"), copies)
}

fn durations(
    out: &mut DescriptorEncoder<'_>,
    routes: &[(String, Vec<&RouteCounters>)],
) -> fmt::Result {
    let help = "From the first byte of a request to the last of its response; no tunnels";
    let kind = MetricType::Histogram;
    let mut family = out.encode_descriptor("request_duration_seconds", help, None, kind)?;
    for (route, workers) in routes {
        let in_bucket =
            |index: usize| workers.iter().map(|counters| counters.durations[index].get()).sum();
        let counts: Vec<u64> = (0..=DURATION_BOUNDS_S.len()).map(in_bucket).collect();
        let bounds = DURATION_BOUNDS_S.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
        let sum_us = workers.iter().map(|counters| counters.duration_us.get()).sum();
        let sum = Duration::from_micros(sum_us).as_secs_f64();
        let labels: Labels = vec![("route", route.clone())];
        let total = counts.iter().sum();
        family
            .encode_family(&labels)?
            .encode_histogram::<NoLabelSet>(sum, total, &buckets, None)?;
    }
    Ok(())
}

fn upstreams(out: &mut DescriptorEncoder<'_>, view: &View, look: &Look) -> fmt::Result {
    let endpoints = view.endpoints(look);
    let samples = |of: &dyn Fn(&[Arc<EndpointCounters>]) -> u64| -> Vec<(Labels, u64)> {
        let sample = |(upstream, endpoint, workers): &(String, String, Vec<_>)| {
            let labels = vec![("upstream", upstream.clone()), ("endpoint", endpoint.clone())];
            (labels, of(workers))
        };
        endpoints.iter().map(sample).collect()
    };
    let sum = |of: fn(&EndpointCounters) -> &Counter| {
        samples(&|workers| workers.iter().map(|counters| of(counters).get()).sum())
    };
    let healthy = |workers: &[Arc<EndpointCounters>]| {
        u64::from(workers.iter().all(|counters| counters.ejected.get() == 0))
    };
    let help = "0 while a worker leaves the endpoint out because requests to it failed";
    gauges(out, ("upstream_healthy", help), samples(&healthy))?;
    let idle = sum(|counters| &counters.idle);
    gauges(out, ("upstream_connections_idle", "Connections that wait for a request"), idle)?;
    let in_use = sum(|counters| &counters.in_use);
    gauges(
        out,
        ("upstream_connections_in_use", "Connections that carry a request or tunnel"),
        in_use,
    )?;
    let connects = sum(|counters| &counters.connects);
    counters(out, ("upstream_connects", "Connections made"), connects)?;
    let failures = sum(|counters| &counters.failures);
    counters(out, ("upstream_connect_failures", "Connections that could not be made"), failures)?;
    let reused = sum(|counters| &counters.reused);
    counters(out, ("upstream_reused", "Requests that took an idle connection"), reused)
}

fn bytes(out: &mut DescriptorEncoder<'_>, look: &Look) -> fmt::Result {
    let moved = &look.moved;
    let samples = |key: &'static str, values: &[(&'static str, u64)]| -> Vec<(Labels, u64)> {
        values.iter().map(|&(label, value)| (vec![(key, label.to_owned())], value)).collect()
    };
    let by_direction = samples("direction", &[("in", moved.bytes_in), ("out", moved.bytes_out)]);
    counters(out, ("bytes", "Plaintext from and to clients, heads included"), by_direction)?;
    let by_path = samples("path", &[("splice", moved.spliced), ("copy", moved.copied())]);
    counters(out, ("moved_bytes", "The same, by how it moved through the gateway"), by_path)?;
    let values = [moved.kernel_tls, moved.user_tls, moved.no_tls];
    let by_tls: Vec<_> = TLS_PATHS.into_iter().zip(values).collect();
    let help = "The same, by where the TLS record layer runs";
    counters(out, ("tls_bytes", help), samples("tls", &by_tls))
}

fn kernel(out: &mut DescriptorEncoder<'_>, view: &View, look: &Look) -> fmt::Result {
    let on = u64::from(view.meter.is_on());
    gauges(out, ("bpf_active", "1 while the kernel measures connections"), one(on))?;
    let help = "From the arrival of bytes of the upstream to their leaving for the client";
    latency(out, ("flush_latency_seconds", help), &look.down)?;
    let help = "From the arrival of bytes of the client to their leaving for the upstream";
    latency(out, ("input_latency_seconds", help), &look.up)?;
    let stats = view.meter.stats().unwrap_or_default();
    gauges(out, ("bpf_map_entries", "Connections measured now"), one(look.measured))?;
    let help = "Connections that can be measured at once";
    gauges(out, ("bpf_map_capacity", help), one(stats.capacity))?;
    let help = "Connections that were not measured, by cause";
    let errors = [
        ("map_full", stats.insert_errors),
        ("unmeasured", stats.unmeasured),
        ("unseen", stats.unseen),
        ("address_mismatch", stats.mismatches),
    ];
    let errors = errors.map(|(label, value)| (vec![("cause", label.to_owned())], value));
    counters(out, ("bpf_errors", help), errors)
}

/// One bucket per doubling, up to a minute.
fn latency(
    out: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    latency: &Latency,
) -> fmt::Result {
    const BOUND_MAX: Duration = Duration::from_secs(64);
    let all: Vec<(Duration, u64)> = latency.histogram().collect();
    let mut buckets: Vec<(f64, u64)> = Vec::new();
    let mut counted = 0;
    for quarters in all.chunks_exact(4).take_while(|quarters| quarters[3].0 <= BOUND_MAX) {
        let count = quarters.iter().map(|(_, count)| count).sum::<u64>();
        counted += count;
        buckets.push((quarters[3].0.as_secs_f64(), count));
    }
    let total = all.iter().map(|(_, count)| count).sum::<u64>();
    buckets.push((f64::INFINITY, total - counted));
    let mut family = out.encode_descriptor(name, help, None, MetricType::Histogram)?;
    family.encode_histogram::<NoLabelSet>(latency.sum.as_secs_f64(), total, &buckets, None)
}
