use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, TE};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, Full};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::StdError;

use super::answer::{Answer, Beginning};
use super::body::{CallBody, Messages};
use super::metadata;
use super::routes::{self, Route};
use super::status::{error_line, http_status, json, refusal};
use crate::listener::{ConnectionInfo, HeldBytes};

/// Answers up to this length are sent with it.
const WHOLE_BYTES_MAX: usize = 64 * 1024;
const METHOD_OVERRIDE: HeaderName = HeaderName::from_static("x-http-method-override");

/// What the gateway takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest message of a request, in wire format.
    pub message_bytes_max: usize,
}

/// Answers a request to a path of the gateway. `call` is the service of the port, which sees a gRPC request.
pub async fn answer<B, C, F>(request: Request<B>, limits: Limits, call: C) -> Response<Body>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
    C: FnOnce(Request<CallBody<B>>) -> F,
    F: Future<Output = Response<Body>>,
{
    let route = match route(&request) {
        Ok(route) => route,
        Err(status) => return whole(refusal(&status)),
    };
    match answered(request, route, limits, call).await {
        Ok(response) => response,
        Err(status) => whole(refusal(&status)),
    }
}

fn route<B>(request: &Request<B>) -> Result<&'static Route, Status> {
    let route = routes::find(request.uri().path()).ok_or_else(|| Status::not_found("Not Found"))?;
    let form = request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/x-www-form-urlencoded");
    let method = match request.headers().get(METHOD_OVERRIDE).filter(|_| form && request.method() == Method::POST) {
        Some(method) => method.as_bytes().to_ascii_uppercase(),
        None => request.method().as_str().as_bytes().to_vec(),
    };
    match method == b"POST" {
        true => Ok(route),
        false => Err(Status::unimplemented("Method Not Allowed")),
    }
}

async fn answered<B, C, F>(
    request: Request<B>,
    route: &'static Route,
    limits: Limits,
    call: C,
) -> Result<Response<Body>, Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
    C: FnOnce(Request<CallBody<B>>) -> F,
    F: Future<Output = Response<Body>>,
{
    let (mut parts, body) = request.into_parts();
    let connection = parts.extensions.get::<Arc<ConnectionInfo>>().cloned();
    let timeout = metadata::timeout(&parts.headers)?;
    if timeout.is_some_and(|time| time.is_zero()) {
        return Err(too_late());
    }
    let mut deadline = timeout.map(|time| Box::pin(tokio::time::sleep(time)));
    let mut headers = metadata::incoming(&parts.headers, connection.as_ref())?;
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    parts.headers = headers;
    parts.method = Method::POST;
    parts.version = Version::HTTP_2;
    parts.uri = Uri::from_static(route.method.path);
    let stream = route.is_answered_by_stream();
    // As with etcd, the failure of a stream is a line of it; a request that is no message of its method is refused as in any other call.
    let failed = |status: Status| match stream {
        true => Ok(whole(json(http_status(status.code()), error_line(&status)))),
        false => Err(status),
    };
    let messages = Messages::new(body, route.input.clone(), limits.message_bytes_max, HeldBytes::new(connection));
    let call = async {
        let body = match route.is_asked_by_stream() {
            true => CallBody::Messages(Box::new(messages)),
            false => CallBody::Message(Some(messages.only().await?)),
        };
        Ok::<_, Status>(call(Request::from_parts(parts, body)).await)
    };
    let response = match &mut deadline {
        None => call.await?,
        Some(deadline) => tokio::select! {
            response = call => response?,
            () = deadline => return failed(too_late()),
        },
    };
    let (head, body) = response.into_parts();
    let mut answer = Answer::new(body, &head.headers, route.output.clone(), stream).with_deadline(deadline);
    if let Beginning::Status(status) = answer.begin(WHOLE_BYTES_MAX).await {
        return failed(status);
    }
    let mut response = match answer.whole() {
        // A stream without messages has nothing to describe.
        Some(body) if body.is_empty() => return Ok(Response::new(Body::empty())),
        Some(body) => whole(json(StatusCode::OK, body)),
        None => json(StatusCode::OK, Bytes::new()).map(|_| Body::new(answer)),
    };
    metadata::outgoing(&head.headers, response.headers_mut());
    Ok(response)
}

fn too_late() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}

fn whole(response: Response<Full<Bytes>>) -> Response<Body> {
    response.map(|body| Body::new(body.map_err(|never| match never {})))
}
