package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

func sends(a *app) {
	topic, from, ctx := named("sends"), a.producer(), context.Background()
	wanted := append(append(series("sync", 20), series("async", 20)...), series("oneway", 20)...)

	ids := map[string]bool{}
	for _, body := range series("sync", 20) {
		message := text(topic, body).WithTag("green").WithKeys([]string{"k1", "k2"})
		message.WithProperty("colour", "grün")
		ids[send(from, message).MsgID] = true
	}
	if len(ids) != 20 {
		fail("%d message ids of 20 sends", len(ids))
	}

	answers := make(chan error, 40)
	for _, body := range series("async", 20) {
		ok(from.SendAsync(ctx, func(_ context.Context, result *primitive.SendResult, err error) {
			if err == nil && result.Status != primitive.SendOK {
				err = fmt.Errorf("status %v of an async send", result.Status)
			}
			answers <- err
		}, text(topic, body)))
	}
	for range 20 {
		select {
		case err := <-answers:
			ok(err)
		case <-time.After(patience):
			fail("an async send was not answered")
		}
	}

	for _, body := range series("oneway", 20) {
		ok(from.SendOneWay(ctx, text(topic, body)))
	}

	large := strings.Repeat("all work and no play ", 20000) // The client compresses it.
	send(from, text(topic, large))

	got := a.collect("g-sends", topic, everything)
	got.exactly(append(wanted, large)...)
	for _, one := range got.all() {
		if !strings.HasPrefix(one.body, "sync") {
			continue
		}
		if one.from.GetTags() != "green" || one.from.GetKeys() != "k1 k2" || one.from.GetProperty("colour") != "grün" || !ids[one.from.MsgId] {
			fail("not what was sent: %v", one.from)
		}
	}
}

func batch(a *app) {
	topic := named("batch")
	var messages []*primitive.Message
	for _, body := range series("batch", 30) {
		messages = append(messages, text(topic, body))
	}
	queue := send(a.producer(), messages...).MessageQueue.QueueId
	got := a.collect("g-batch", topic, everything)
	got.exactly(series("batch", 30)...)
	for _, one := range got.all() {
		if one.queue != queue {
			fail("%s is in queue %d, the batch in %d", one.body, one.queue, queue)
		}
	}
}

// The hash selector sends all messages with one sharding key to one queue; an orderly consumer takes a queue's messages
// one after the other. What it refuses comes again before the next.
func orderly(a *app) {
	topic, from := named("orderly"), a.producer(producer.WithQueueSelector(producer.NewHashQueueSelector()))
	wanted, all, queues := map[string][]string{}, []string{}, map[string]int{}
	expect := func(key, body string) { wanted[key], all = append(wanted[key], body), append(all, body) }
	for n := range 90 {
		key, body := fmt.Sprint("key ", n%3), fmt.Sprintf("key %d, %d", n%3, n)
		queue := send(from, text(topic, body).WithShardingKey(key)).MessageQueue.QueueId
		if before, found := queues[key]; found && before != queue {
			fail("%s went to the queues %d and %d", key, before, queue)
		}
		queues[key] = queue
		expect(key, body)
		if n == 31 { // The refused one.
			expect(key, body)
		}
	}
	a.awaitTopic(topic)
	got, refused := &inbox{}, sync.Once{}
	a.listen("g-orderly", topic, everything, func(ctx context.Context, message *primitive.MessageExt) consumer.ConsumeResult {
		result := consumer.ConsumeSuccess
		got.put(string(message.Body), message)
		if strings.HasSuffix(string(message.Body), ", 31") {
			refused.Do(func() {
				if about, found := primitive.GetOrderlyCtx(ctx); found {
					about.SuspendCurrentQueueTimeMillis = 500
				}
				result = consumer.SuspendCurrentQueueAMoment
			})
		}
		return result
	}, consumer.WithConsumerOrder(true))
	got.exactly(all...)
	found := map[string][]string{}
	for _, one := range got.all() {
		key, _, _ := strings.Cut(one.body, ",")
		found[key] = append(found[key], one.body)
		if one.queue != queues[key] {
			fail("%s came from queue %d", one.body, one.queue)
		}
	}
	for key := range wanted {
		same(key, found[key], wanted[key])
	}
}

func delayed(a *app) {
	topic, from := named("delayed"), a.producer()
	send(from, text(topic, "at once"))
	got := a.collect("g-delayed", topic, everything)
	got.exactly("at once")
	begun := time.Now()
	send(from, text(topic, "after 5 s").WithDelayTimeLevel(2)) // Levels: 1s 5s 10s 30s 1m ...
	got.exactly("at once", "after 5 s")
	if took := got.all()[1].at.Sub(begun); took < 4900*time.Millisecond || took > 9*time.Second {
		fail("due after 5 s, came after %v", took)
	}
}

// bank decides by the body how a local transaction ends. It leaves some open: the broker asks for them later.
type bank struct {
	asked inbox
}

func (b *bank) ExecuteLocalTransaction(message *primitive.Message) primitive.LocalTransactionState {
	switch string(message.Body) {
	case "commit":
		return primitive.CommitMessageState
	case "roll back":
		return primitive.RollbackMessageState
	}
	return primitive.UnknowState
}

func (b *bank) CheckLocalTransaction(message *primitive.MessageExt) primitive.LocalTransactionState {
	b.asked.put(string(message.Body), message)
	if string(message.Body) == "commit when asked" {
		return primitive.CommitMessageState
	}
	return primitive.RollbackMessageState
}

func transactions(a *app) {
	topic, listener := named("transactions"), &bank{}
	from := must(rocketmq.NewTransactionProducer(listener,
		producer.WithNsResolver(nameServers), producer.WithGroupName(named("bank")), producer.WithInstanceName(instance())))
	ok(from.Start())
	a.atEnd(from.Shutdown)
	wanted := map[string]primitive.LocalTransactionState{
		"roll back": primitive.RollbackMessageState, "roll back when asked": primitive.UnknowState,
		"commit": primitive.CommitMessageState, "commit when asked": primitive.UnknowState,
	}
	for body, state := range wanted {
		result := must(from.SendMessageInTransaction(context.Background(), text(topic, body)))
		if result.Status != primitive.SendOK || result.State != state {
			fail("%s: %v", body, result)
		}
	}
	got := a.collect("g-transactions", topic, everything)
	got.exactly("commit", "commit when asked")
	listener.asked.exactly("commit when asked", "roll back when asked")
	got.exactly("commit", "commit when asked")
}

// A reply is a message to the client that asked. CreateReplyMessage takes its body but forgets it.
func requests(a *app) {
	topic, from, replier, ctx := named("requests"), a.producer(), a.producer(producer.WithGroupName(named("repliers"))), context.Background()
	replies, problems := make(chan string, 5), make(chan error, 10)
	go func() { // The first request makes the topic, so nobody listens yet.
		for _, body := range series("question", 5) {
			reply, err := from.Request(ctx, patience, text(topic, body))
			if err != nil {
				problems <- fmt.Errorf("%s: %w", body, err)
				return
			}
			replies <- string(reply.Body)
		}
	}()
	a.awaitTopic(topic)
	a.listen("g-requests", topic, everything, func(_ context.Context, message *primitive.MessageExt) consumer.ConsumeResult {
		answer := []byte("answer to " + string(message.Body))
		reply, err := consumer.CreateReplyMessage(message, answer)
		if err == nil {
			reply.Body = answer
			_, err = replier.SendSync(ctx, reply)
		}
		if err != nil {
			problems <- fmt.Errorf("reply: %w", err)
		}
		return consumer.ConsumeSuccess
	})
	for _, wanted := range series("answer to question", 5) {
		select {
		case found := <-replies:
			same("reply", []string{found}, []string{wanted})
		case err := <-problems:
			ok(err)
		case <-time.After(2 * patience):
			fail("no %s", wanted)
		}
	}
}
