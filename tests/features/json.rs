//! The API as JSON over HTTP. `interop/http_json.py` compares a thousand requests with etcd; here is what must hold behind
//! the gateway and the proxy, and what a comparison of single answers does not see.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::harness::{Deployment, JsonCall, Target, is_stock, json, metric, run, soon, until};
use crate::on_every_target;

on_every_target! {
    writes_and_reads_are_those_of_grpc,
    errors_have_code_and_message,
    a_watch_is_a_line_for_each_answer,
    a_client_that_leaves_leaves_no_watcher,
    a_stream_of_requests_is_answered_as_they_come,
    long_answers_come_whole,
    a_snapshot_is_a_line_for_each_piece,
    locks_and_elections_work,
    a_time_limit_ends_a_call,
    a_web_socket_carries_a_stream,
}

/// A web socket to a path, with one more header.
async fn web_socket(endpoint: &str, path: &str, header: &str) -> WebSocketStream<TcpStream> {
    let mut stream = TcpStream::connect(endpoint).await.expect("connects");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{header}\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("the answer", stream.read_u8()).await.expect("an answer"));
    }
    let head = String::from_utf8(head).expect("text").to_lowercase();
    let agreed = "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=";
    assert!(head.starts_with("http/1.1 101 ") && head.contains(agreed), "{head}");
    WebSocketStream::from_raw_socket(stream, Role::Client, None).await
}

/// The next message.
async fn message(socket: &mut WebSocketStream<TcpStream>) -> Value {
    let message = soon("a message", socket.next()).await.expect("a message").expect("a message");
    serde_json::from_str(message.to_text().expect("text")).expect("JSON")
}

fn b64(text: &str) -> String {
    STANDARD.encode(text)
}

async fn writes_and_reads_are_those_of_grpc(deployment: &mut Deployment) {
    let endpoint = deployment.endpoint.clone();
    let put = json!({"key": b64("a"), "value": b64("1")}).to_string();
    let (status, answer) = json(&endpoint, "/v3/kv/put", &put).await;
    assert_eq!((status, &answer["header"]["revision"]), (200, &json!("2")), "{answer}");
    assert_eq!(deployment.get("a").await.kvs[0].value, "1");
    deployment.put("b", vec![0xff, 0xfe]).await;
    let range = json!({"key": b64("a"), "rangeEnd": b64("z"), "limit": "2", "sort_order": "DESCEND"}).to_string();
    let (_, answer) = json(&endpoint, "/v3/kv/range", &range).await;
    let expected =
        json!({"key": b64("b"), "value": "//4=", "create_revision": "3", "mod_revision": "3", "version": "1"});
    assert_eq!((&answer["kvs"][0], &answer["count"]), (&expected, &json!("2")), "{answer}");
    assert!(answer.get("more").is_none(), "what is false is left out: {answer}");
    let txn = json!({
        "compare": [{"target": "VALUE", "key": b64("a"), "value": b64("1")}],
        "success": [{"request_delete_range": {"key": b64("a"), "prev_kv": true}}],
    });
    let (_, answer) = json(&endpoint, "/v3beta/kv/txn", &txn.to_string()).await;
    assert_eq!(answer["succeeded"], true, "{answer}");
    assert_eq!(answer["responses"][0]["response_delete_range"]["prev_kvs"][0]["value"], b64("1"), "{answer}");
    let (_, answer) = json(&endpoint, "/v3/lease/grant", r#"{"TTL": 100, "ID": "77"}"#).await;
    assert_eq!((&answer["ID"], &answer["TTL"]), (&json!("77"), &json!("100")), "{answer}");
    let (_, answer) = json(&endpoint, "/v3/kv/lease/revoke", r#"{"ID": 77}"#).await;
    assert!(answer["header"]["cluster_id"].is_string(), "{answer}");
}

async fn errors_have_code_and_message(deployment: &mut Deployment) {
    for (path, body, status, code, message) in [
        ("/v3/lease/revoke", r#"{"ID": 9}"#, 404, 5, "etcdserver: requested lease not found"),
        ("/v3/kv/put", "{}", 400, 3, "etcdserver: key is not provided"),
        (
            "/v3/kv/range",
            r#"{"key":"YQ==","revision":99}"#,
            400,
            11,
            "etcdserver: mvcc: required revision is a future revision",
        ),
        ("/v3/kv/range", "{", 400, 3, "unexpected EOF"),
        ("/v3/kv/range", r#"{"key":1}"#, 400, 3, "proto: (line 1:8): invalid value for bytes field key: 1"),
        // Cause: where the answer is a stream, a request that cannot be read was refused as a stream that fails.
        ("/v3/election/observe", r#"{"name":"""#, 400, 3, "unexpected EOF"),
        ("/v3/maintenance/snapshot", "{", 400, 3, "unexpected EOF"),
        ("/v3/kv/range/", "{}", 404, 5, "Not Found"),
        ("/v3/nothing", "{}", 404, 5, "Not Found"),
    ] {
        let (got, answer) = json(&deployment.endpoint, path, body).await;
        let text = answer["message"].as_str().unwrap_or_default().replace('\u{a0}', " ");
        assert_eq!((got, &answer["code"], text.as_str()), (status, &json!(code), message), "{path} {body}");
        // As in older versions, whose clients look there.
        assert!(is_stock() || answer["error"] == answer["message"], "{answer}");
    }
}

async fn a_watch_is_a_line_for_each_answer(deployment: &mut Deployment) {
    deployment.put("w", "0").await;
    let create = json!({"create_request": {"key": b64("w"), "start_revision": 2}}).to_string();
    let mut watch = JsonCall::post(&deployment.endpoint, "/v3/watch", &create).await;
    let created = watch.line().await.expect("a line");
    assert_eq!(created["result"]["created"], true, "{created}");
    assert!(watch.status == 200 && watch.head.contains("content-type: application/json"), "{}", watch.head);
    for value in ["0", "1", "2"] {
        let line = watch.line().await.expect("a line");
        let event = &line["result"]["events"][0];
        assert_eq!(event["kv"]["value"], b64(value), "{line}");
        assert!(event.get("type").is_none(), "a put is the zero of its type: {line}");
        // The request has ended; the watch goes on.
        deployment.put("w", (value.parse::<u32>().expect("a number") + 1).to_string()).await;
    }
    deployment.delete("w").await;
    // The last put and the deletion are one line or two.
    let mut events = Vec::new();
    while events.len() < 2 {
        let line = watch.line().await.expect("a line");
        events.extend(line["result"]["events"].as_array().expect("events").clone());
    }
    assert_eq!((&events[0]["kv"]["value"], &events[1]["type"]), (&json!(b64("3")), &json!("DELETE")), "{events:?}");
}

async fn a_client_that_leaves_leaves_no_watcher(deployment: &mut Deployment) {
    let create = json!({"create_request": {"key": b64("w")}}).to_string();
    let mut watch = JsonCall::post(&deployment.endpoint, "/v3/watch", &create).await;
    watch.line().await.expect("a line");
    let watchers = async || metric(&deployment.member, "etcd_debugging_mvcc_watcher_total").await;
    assert_eq!(watchers().await, Some(1.0));
    drop(watch);
    until("no watcher", async || (watchers().await == Some(0.0)).then_some(())).await;
}

async fn a_stream_of_requests_is_answered_as_they_come(deployment: &mut Deployment) {
    let lease = deployment.grant(100).await;
    let mut alive = JsonCall::begin(&deployment.endpoint, "/v3/lease/keepalive").await;
    for _ in 0..3 {
        // In two parts: a request ends where its object does.
        alive.send(&format!("{{\"ID\":\"{lease}")).await;
        alive.send("\"}").await;
        let line = alive.line().await.expect("a line");
        assert_eq!(
            (&line["result"]["ID"], &line["result"]["TTL"]),
            (&json!(lease.to_string()), &json!("100")),
            "{line}"
        );
    }
    alive.send("").await;
    assert_eq!(alive.line().await, None, "the stream ends with the requests");
}

async fn long_answers_come_whole(deployment: &mut Deployment) {
    for number in 0..40 {
        deployment.put(format!("l{number:02}"), vec![number; 100_000]).await;
    }
    let range = json!({"key": b64("l"), "range_end": b64("m")}).to_string();
    let (status, answer) = json(&deployment.endpoint, "/v3/kv/range", &range).await;
    let pairs = answer["kvs"].as_array().expect("pairs");
    assert_eq!((status, pairs.len()), (200, 40));
    for (number, pair) in (0u8..).zip(pairs) {
        let value = STANDARD.decode(pair["value"].as_str().expect("a value")).expect("base64");
        assert!(value == vec![number; 100_000], "pair {number}");
    }
}

async fn a_snapshot_is_a_line_for_each_piece(deployment: &mut Deployment) {
    deployment.put("s", "1").await;
    let mut snapshot = JsonCall::post(&deployment.endpoint, "/v3/maintenance/snapshot", "").await;
    let mut bytes = Vec::new();
    while let Some(line) = snapshot.line().await {
        bytes.extend(STANDARD.decode(line["result"]["blob"].as_str().expect("a blob")).expect("base64"));
    }
    let (snapshot, sum) = bytes.split_at(bytes.len() - 32);
    assert!(
        snapshot.len().is_multiple_of(512) && sum == Sha256::digest(snapshot).as_slice(),
        "{} bytes",
        snapshot.len()
    );
}

async fn locks_and_elections_work(deployment: &mut Deployment) {
    let lease = deployment.grant(100).await;
    let lock = json!({"name": b64("l"), "lease": lease}).to_string();
    let (status, held) = json(&deployment.endpoint, "/v3/lock/lock", &lock).await;
    assert_eq!(status, 200, "{held}");
    let campaign = json!({"name": b64("e"), "lease": lease, "value": b64("me")}).to_string();
    let (_, led) = json(&deployment.endpoint, "/v3/election/campaign", &campaign).await;
    let mut observed =
        JsonCall::post(&deployment.endpoint, "/v3/election/observe", &json!({"name": b64("e")}).to_string()).await;
    let line = observed.line().await.expect("a line");
    assert_eq!(line["result"]["kv"]["value"], b64("me"), "{line}");
    let proclaim = json!({"leader": led["leader"], "value": b64("still me")}).to_string();
    assert_eq!(json(&deployment.endpoint, "/v3/election/proclaim", &proclaim).await.0, 200);
    let line = observed.line().await.expect("a line");
    assert_eq!(line["result"]["kv"]["value"], b64("still me"), "{line}");
    let unlock = json!({"key": held["key"]}).to_string();
    assert_eq!(json(&deployment.endpoint, "/v3/lock/unlock", &unlock).await.0, 200);
}

async fn a_time_limit_ends_a_call(deployment: &mut Deployment) {
    let lease = deployment.grant(100).await;
    let campaign = json!({"name": b64("t"), "lease": lease}).to_string();
    assert_eq!(json(&deployment.endpoint, "/v3/election/campaign", &campaign).await.0, 200);
    let other = json!({"name": b64("t"), "lease": deployment.grant(100).await}).to_string();
    let mut waiting =
        JsonCall::post_with(&deployment.endpoint, "/v3/election/campaign", "Grpc-Timeout: 100m\r\n", &other).await;
    let answer = waiting.whole().await;
    assert_eq!((waiting.status, &answer["code"]), (504, &json!(4)), "{answer}");
    assert_eq!(answer["message"], "context deadline exceeded");
    let create = json!({"create_request": {"key": b64("w")}}).to_string();
    // Long enough for the watch to be created.
    let mut watch = JsonCall::post_with(&deployment.endpoint, "/v3/watch", "Grpc-Timeout: 3S\r\n", &create).await;
    assert_eq!(watch.line().await.expect("a line")["result"]["created"], true);
    let line = watch.line().await.expect("a line");
    assert_eq!((&line["error"]["code"], watch.line().await), (&json!(4), None), "{line}");
}

#[test]
fn a_namespace_holds_for_json() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let (_proxy, proxy) = deployment.also_front("grpc-proxy", &["--namespace=t/"]).await;
        let create = json!({"create_request": {"key": b64("a")}}).to_string();
        let mut watch = JsonCall::post(&proxy, "/v3/watch", &create).await;
        watch.line().await.expect("a line");
        let put = json!({"key": b64("a"), "value": b64("1")}).to_string();
        assert_eq!(json(&proxy, "/v3/kv/put", &put).await.0, 200);
        assert_eq!(deployment.get("t/a").await.kvs[0].value, "1");
        let line = watch.line().await.expect("a line");
        assert_eq!(line["result"]["events"][0]["kv"]["key"], b64("a"), "{line}");
        let (_, answer) = json(&proxy, "/v3/kv/range", &json!({"key": "AA==", "range_end": "AA=="}).to_string()).await;
        let keys: Vec<&Value> = answer["kvs"].as_array().expect("pairs").iter().map(|pair| &pair["key"]).collect();
        assert_eq!(keys, [&json!(b64("a"))]);
    });
}

#[test]
fn the_gateway_can_be_turned_off() {
    run(Target::Core, &["--enable-grpc-gateway=false"], async |deployment: &mut Deployment| {
        let answer = crate::harness::http_get(&deployment.endpoint, "POST", "/v3/kv/range").await.expect("an answer");
        assert_eq!((answer.status, answer.body.as_str()), (404, "404 page not found\n"));
    });
}

async fn a_web_socket_carries_a_stream(deployment: &mut Deployment) {
    let mut watch = web_socket(&deployment.endpoint, "/v3/watch", "").await;
    for part in [r#"{"create_request":"#, r#"{"key":"dw=="}}"#, r#"{"create_request":{"key":"eA=="}}"#] {
        watch.send(Message::text(part)).await.expect("sent");
    }
    for _ in 0..2 {
        let created = message(&mut watch).await;
        assert_eq!(created["result"]["created"], true, "{created}");
    }
    for value in ["1".to_owned(), "2".repeat(100_000)] {
        deployment.put("w", value.clone()).await;
        let event = message(&mut watch).await;
        assert_eq!(event["result"]["events"][0]["kv"]["value"], b64(&value));
    }
    let watchers = async || metric(&deployment.member, "etcd_debugging_mvcc_watcher_total").await;
    assert_eq!(watchers().await, Some(2.0));
    watch.close(None).await.expect("sent");
    until("no watcher", async || (watchers().await == Some(0.0)).then_some(())).await;

    let mut unknown = web_socket(&deployment.endpoint, "/v3/nothing", "").await;
    assert_eq!(message(&mut unknown).await["message"], "Not Found");
    if is_stock() {
        return; // A call of one message waits for the end of its request, which there is none of.
    }
    let mut range = web_socket(&deployment.endpoint, "/v3/kv/range", "").await;
    range.send(Message::text(r#"{"key":"dw==","count_only":true}"#)).await.expect("sent");
    assert_eq!(message(&mut range).await["count"], "1");
    let end = soon("the end", range.next()).await.expect("the end").expect("the end");
    assert!(end.is_close(), "{end}");
}

#[test]
fn a_web_socket_has_the_token_of_its_user() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let endpoint = deployment.endpoint.clone();
        for (path, body) in [
            ("/v3/auth/user/add", r#"{"name":"root","password":"p"}"#),
            ("/v3/auth/role/add", r#"{"name":"root"}"#),
            ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
            ("/v3/auth/enable", "{}"),
        ] {
            assert_eq!(json(&endpoint, path, body).await.0, 200, "{path}");
        }
        let token = json(&endpoint, "/v3/auth/authenticate", r#"{"name":"root","password":"p"}"#).await.1;
        let token = token["token"].as_str().expect("a token");
        let create = || Message::text(r#"{"create_request":{"key":"dw=="}}"#);
        for (header, canceled) in [
            (String::new(), json!(true)),
            (format!("Sec-WebSocket-Protocol: Bearer, {token}\r\n"), Value::Null),
            (format!("Cookie: a=b; token={token}\r\n"), Value::Null),
        ] {
            let mut watch = web_socket(&endpoint, "/v3/watch", &header).await;
            watch.send(create()).await.expect("sent");
            let created = message(&mut watch).await;
            assert_eq!(created["result"]["canceled"], canceled, "{header}: {created}");
        }
    });
}
