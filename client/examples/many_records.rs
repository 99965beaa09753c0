//! Sends 10,000 messages without waiting for each, and reads them as a stream.

use std::future::poll_fn;
use std::pin::Pin;

use futures_core::Stream;
use ringmq_client::{Client, Error, Message, StartAt};

const MESSAGES: usize = 10_000;

#[tokio::main]
#[allow(dead_code)] // The tests call `run`.
async fn main() -> Result<(), Error> {
    let address = std::env::args().nth(1);
    run(address.as_deref().unwrap_or("127.0.0.1:10911")).await
}

/// The example with the broker at `address`.
pub async fn run(address: &str) -> Result<(), Error> {
    let client = Client::connect(address).await?;
    let producer = client.producer();
    let mut deliveries = Vec::with_capacity(MESSAGES);
    for number in 0..MESSAGES {
        // Messages with one key are read in the order in which they were sent.
        let message = Message::new("many", number.to_string()).order_key("one");
        deliveries.push(producer.submit(message).await?);
    }
    for delivery in deliveries {
        delivery.await?;
    }

    let mut consumer = client.consumer("many-readers");
    consumer.assign_topic("many", StartAt::Committed).await?;
    let mut messages = consumer.into_stream();
    for number in 0..MESSAGES {
        let next = poll_fn(|cx| Pin::new(&mut messages).poll_next(cx)).await;
        let Some(message) = next.transpose()? else {
            break;
        };
        assert_eq!(message.body(), number.to_string());
    }
    messages.commit().await?;
    println!("{MESSAGES} messages came back in order");
    Ok(())
}
