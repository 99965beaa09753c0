//! Sends a few messages and reads them back: `cargo run --example send_and_receive -- 127.0.0.1:10911`.

use ringmq_client::{Client, Error, Message, StartAt};

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
    for number in 0..3 {
        let message = Message::new("example", format!("message {number}")).tag("example");
        let receipt = producer.send(message).await?;
        println!(
            "sent to queue {} at offset {}",
            receipt.queue_id, receipt.queue_offset
        );
    }

    let mut consumer = client.consumer("example-readers");
    consumer.assign_topic("example", StartAt::Committed).await?;
    for _ in 0..3 {
        let message = consumer.next().await?;
        println!("received {:?}", message.body());
    }
    consumer.commit().await
}
