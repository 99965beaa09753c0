//! Two members of one group share the queues of a topic; when one leaves, the other one gets its queues.

use ringmq_client::{Client, Error, Message, Rebalance};

#[tokio::main]
#[allow(dead_code)] // The tests call `run`.
async fn main() -> Result<(), Error> {
    let address = std::env::args().nth(1);
    run(address.as_deref().unwrap_or("127.0.0.1:10911")).await
}

/// The example with the broker at `address`.
pub async fn run(address: &str) -> Result<(), Error> {
    let client = Client::connect(address).await?;
    client.create_topic("shared-work", 4).await?;
    let (got, mut who_got) = tokio::sync::mpsc::unbounded_channel();
    let members = ["first", "second"].map(|name| {
        let mut consumer = client.subscribe("workers", &["shared-work"]);
        let got = got.clone();
        consumer.on_rebalance(move |change| match change {
            Rebalance::Assigned(queues) => {
                println!("{name}: got {} queues", queues.len());
                let _ = got.send(name);
            }
            Rebalance::Revoked(queues) => println!("{name}: gave up {} queues", queues.len()),
            Rebalance::Lost(queues) => println!("{name}: lost {} queues", queues.len()),
        });
        consumer
    });
    let (done, mut all_done) = tokio::sync::mpsc::unbounded_channel();
    for mut consumer in members {
        let done = done.clone();
        tokio::spawn(async move {
            // Each message is done when the next one is asked for: what was taken is committed by itself.
            while let Ok(message) = consumer.next().await {
                if done.send(message.body()).is_err() {
                    break;
                }
            }
            consumer.close().await
        });
    }
    // The second one gets its share when the first one has given it up.
    let mut with_queues = std::collections::BTreeSet::new();
    while with_queues.len() < 2 {
        with_queues.extend(who_got.recv().await);
    }
    let producer = client.producer();
    for number in 0..100 {
        let message = Message::new("shared-work", format!("piece {number}"));
        producer.send(message).await?;
    }
    let mut pieces = std::collections::BTreeSet::new();
    while pieces.len() < 100 {
        // At least once: a piece may come again after a move.
        pieces.extend(all_done.recv().await);
    }
    println!("100 pieces are done");
    Ok(())
}
