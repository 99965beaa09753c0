//! The native client on its second runtime against a real broker: sends, a group that shares queues, a broker that is killed.

use std::collections::BTreeSet;
use std::time::Duration;

use glommio_ng::{LocalExecutor, LocalExecutorBuilder};
use ringmq_client::glommio::{Client, Consumer, ConsumerOptions};
use ringmq_client::{Message, Queue};

use crate::node::{Setup, store_dir};

const PATIENCE: Duration = Duration::from_secs(120);
const MESSAGES: usize = 400;

/// An executor; where io_uring is refused there is none, and the test says so.
fn executor(test: &str) -> Option<LocalExecutor> {
    let executor = LocalExecutorBuilder::default().make();
    executor
        .map_err(|error| say!("SKIPPED {test}: glommio gets no io_uring here: {error}"))
        .ok()
}

fn member(client: &Client) -> Consumer {
    let options = ConsumerOptions {
        max_wait: Duration::from_millis(500),
        ..ConsumerOptions::default()
    };
    let mut consumer = client.consumer_with("glommio-readers", options);
    consumer.subscribe(&["on-glommio"]);
    consumer
}

#[test]
fn the_client_on_glommio_sends_and_members_on_it_share_what_was_sent() {
    let name = "the_client_on_glommio_sends_and_members_on_it_share_what_was_sent";
    let Some(executor) = executor(name) else {
        return;
    };
    let store = store_dir();
    let setup = Setup::new(store.path(), 2);
    let port = setup.namesrv_port + 5;
    let setup = setup.set(&format!("nativePort={port}"));
    let mut node = setup.start();
    let address = node.broker.to_string();
    let (found, client) = executor.run(async {
        let client = Client::connect(address).await.unwrap();
        client.create_topic("on-glommio", 4).await.unwrap();
        let producer = client.producer();
        let mut deliveries = Vec::new();
        for number in 0..MESSAGES {
            let body = format!("{number}{}", " ".repeat(number * 31 % 5_000));
            let message = Message::new("on-glommio", body).queue(number as u32 % 4);
            deliveries.push(producer.submit(message).await.unwrap());
        }
        let mut queues = BTreeSet::new();
        for delivery in deliveries {
            let receipt = delivery.await.unwrap();
            queues.insert(Queue::new("on-glommio", receipt.queue_id));
        }
        assert_eq!(queues.len(), 4);
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        for mut consumer in [member(&client), member(&client)] {
            let sender = sender.clone();
            glommio_ng::spawn_local(async move {
                while let Ok(message) = consumer.next().await {
                    if sender.send(message.body()).is_err() {
                        break;
                    }
                }
            })
            .detach();
        }
        (collect(receiver).await, client)
    });
    assert_eq!(found.len(), MESSAGES);
    // Its connections are opened again when the broker is back.
    node.kill();
    let _node = setup.start();
    executor.run(async {
        let receipt = client
            .producer()
            .send(Message::new("on-glommio", "after"))
            .await
            .unwrap();
        assert!(receipt.queue_offset >= 0);
    });
}

async fn collect(
    mut receiver: tokio::sync::mpsc::UnboundedReceiver<bytes::Bytes>,
) -> BTreeSet<usize> {
    let all = async {
        let mut found = BTreeSet::new();
        while found.len() < MESSAGES {
            let body = receiver.recv().await.unwrap();
            let text = std::str::from_utf8(&body).unwrap();
            found.insert(text.trim_end().parse().unwrap());
        }
        found
    };
    let late = async {
        glommio_ng::timer::sleep(PATIENCE).await;
        panic!("not everything came in time");
    };
    futures_lite::future::or(all, late).await
}
