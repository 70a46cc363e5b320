//! Spans of requests arrive at an OpenTelemetry collector, in the trace that the client names.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use tonic::{Request, Response, Status};
use watershed::pb::etcdserverpb::{LeaseRevokeRequest, RangeRequest};

use crate::harness::{Deployment, PATIENCE, Target, is_stock, run};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// Keeps what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().expect("not poisoned").push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Collects on a thread of its own; gives the address.
    fn start(&self) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("address").to_string();
        listener.set_nonblocking(true).expect("nonblocking");
        let service = TraceServiceServer::new(self.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
                let connections = tokio_stream::wrappers::TcpListenerStream::new(listener);
                tonic::transport::Server::builder().add_service(service).serve_with_incoming(connections).await
            })
        });
        address
    }

    /// One line for each span: service, name, trace, parent, code.
    fn spans(&self) -> Vec<String> {
        let text = |attributes: &[KeyValue], key: &str| {
            let found = attributes.iter().find(|attribute| attribute.key == key)?;
            match found.value.clone() {
                Some(AnyValue { value: Some(Value::StringValue(text)) }) => Some(text),
                Some(AnyValue { value: Some(Value::IntValue(number)) }) => Some(number.to_string()),
                _ => None,
            }
        };
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mut lines = Vec::new();
        for sent in self.0.lock().expect("not poisoned").iter().flat_map(|request| &request.resource_spans) {
            let resource = sent.resource.as_ref().map(|resource| resource.attributes.as_slice()).unwrap_or_default();
            let instance = text(resource, "service.instance.id").unwrap_or_default();
            let service = text(resource, "service.name").unwrap_or_default();
            for span in sent.scope_spans.iter().flat_map(|scope| &scope.spans) {
                let code = text(&span.attributes, "rpc.grpc.status_code").unwrap_or_default();
                let (trace, parent) = (hex(&span.trace_id), hex(&span.parent_span_id));
                lines.push(format!("{service} {instance} {} {trace} {parent} {code}", span.name));
            }
        }
        lines
    }
}

async fn range(deployment: &Deployment, sampled: bool) {
    let mut request = Request::new(RangeRequest { key: "k".into(), ..Default::default() });
    let context = format!("00-{TRACE}-{SPAN}-0{}", u8::from(sampled));
    request.metadata_mut().insert("traceparent", context.parse().expect("metadata"));
    deployment.client.kv().range(request).await.expect("range");
}

async fn stop(deployment: &mut Deployment) {
    deployment.server.terminate();
    deployment.server.wait(PATIENCE);
}

fn the_trace_of_a_client_goes_on(target: Target) {
    let collector = Collector::default();
    let flags = [
        "--enable-distributed-tracing",
        &format!("--distributed-tracing-address={}", collector.start()),
        "--distributed-tracing-service-name=store",
        "--distributed-tracing-instance-id=m1",
    ];
    run(target, &flags, async |deployment: &mut Deployment| {
        // The rate is 0: only what the client asks for.
        deployment.put("k", "v").await;
        range(deployment, false).await;
        range(deployment, true).await;
        stop(deployment).await;
    });
    if !is_stock() {
        assert_eq!(collector.spans(), [format!("store m1 etcdserverpb.KV/Range {TRACE} {SPAN} 0")]);
    }
}

#[test]
fn a_member_continues_the_trace_of_a_client() {
    the_trace_of_a_client_goes_on(Target::Core);
}

#[test]
fn the_proxy_passes_the_trace_on() {
    the_trace_of_a_client_goes_on(Target::Proxy);
}

#[test]
fn a_rate_samples_requests_without_a_trace() {
    let collector = Collector::default();
    let flags = [
        "--enable-distributed-tracing",
        &format!("--distributed-tracing-address={}", collector.start()),
        "--distributed-tracing-sampling-rate=1000000",
    ];
    run(Target::Core, &flags, async |deployment: &mut Deployment| {
        deployment.put("k", "v").await;
        deployment.client.lease().lease_revoke(LeaseRevokeRequest { id: 7 }).await.expect_err("no such lease");
        range(deployment, false).await;
        stop(deployment).await;
    });
    let spans = collector.spans();
    let named = |name: &str| spans.iter().any(|span| span.starts_with("etcd  ") && span.contains(name));
    assert!(is_stock() || named("etcdserverpb.KV/Put") && named("etcdserverpb.Lease/LeaseRevoke"), "{spans:?}");
    assert!(is_stock() || spans.iter().any(|span| span.ends_with(" 5")), "NotFound: {spans:?}");
    assert!(!spans.iter().any(|span| span.contains(TRACE)), "the client said no: {spans:?}");
}

#[test]
fn a_dead_collector_costs_nothing() {
    // Bound and never accepted from: connections hang, which is worse than a refusal.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let flags = [
        "--enable-distributed-tracing",
        &format!("--distributed-tracing-address={}", silent.local_addr().expect("address")),
        "--distributed-tracing-sampling-rate=1000000",
    ];
    run(Target::Core, &flags, async |deployment: &mut Deployment| {
        // More than the queue holds.
        let puts = (0..50).map(|_| async {
            for _ in 0..60 {
                deployment.put("k", "v").await;
            }
        });
        futures::future::join_all(puts).await;
        stop(deployment).await;
    });
}
