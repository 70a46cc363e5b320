use std::pin::Pin;

use tonic::{Response, Status, Streaming};

type Call<T> = Pin<Box<dyn Future<Output = Result<Response<Streaming<T>>, Status>> + Send>>;

/// The answers of a stream whose headers come with the first of them, as etcd's do: opening it waits for nothing.
pub struct Answers<T> {
    call: Option<Call<T>>,
    stream: Option<Streaming<T>>,
}

impl<T> Answers<T> {
    /// Takes a call that was not awaited yet.
    pub fn new(call: impl Future<Output = Result<Response<Streaming<T>>, Status>> + Send + 'static) -> Self {
        Self { call: Some(Box::pin(call)), stream: None }
    }

    /// The next answer, or the end. Safe to drop.
    pub async fn message(&mut self) -> Result<Option<T>, Status> {
        if let Some(call) = &mut self.call {
            let answer = call.await;
            self.call = None;
            self.stream = Some(answer?.into_inner());
        }
        match &mut self.stream {
            Some(stream) => stream.message().await,
            None => Ok(None),
        }
    }
}
