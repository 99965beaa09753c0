// Load for NATS JetStream through its own client, in the terms of ringmq-bench: 1 KiB messages, one stream of four subjects in
// files, latency from the moment a message was due. What it prints is described in bench/README.md.
//
//	publish    URL STREAM IN_FLIGHT WARM SECONDS   so many messages are always on their way, each with its own acknowledgement
//	fill       (the same)                          publish, and the stream stays
//	end-to-end URL STREAM RATE WARM SECONDS        open loop, with a consumer beside it
//	pull       URL STREAM                          the whole stream once
//
// A stream is made at the beginning of a run and deleted at its end, but for fill and the pull that follows it.
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	subjects  = 4
	bytes     = 1024
	answerMax = 10 * time.Second
)

// load is one run.
type load struct {
	connection *nats.Conn
	stream     jetstream.JetStream
	name       string
	// Of the measured part, since origin.
	origin      time.Time
	from, until time.Duration
	messages    atomic.Int64
	errors      atomic.Int64
	lock        sync.Mutex
	latencies   *hdrhistogram.Histogram
}

func main() {
	log.SetFlags(0)
	if len(os.Args) < 4 {
		log.Fatal("publish|fill|end-to-end|pull URL STREAM ...")
	}
	connection, err := nats.Connect(os.Args[2])
	check(err)
	stream, err := jetstream.New(connection)
	check(err)
	run := &load{
		connection: connection,
		stream:     stream,
		name:       os.Args[3],
		origin:     time.Now(),
		latencies:  hdrhistogram.New(1, int64(time.Hour), 3),
	}
	switch os.Args[1] {
	case "publish", "fill":
		run.publish(int(number(4)), seconds(5), seconds(6))
	case "end-to-end":
		run.endToEnd(number(4), seconds(5), seconds(6))
	case "pull":
		run.pull()
	default:
		log.Fatalf("%s is not publish, fill, end-to-end or pull", os.Args[1])
	}
	if os.Args[1] != "fill" {
		check(stream.DeleteStream(context.Background(), run.name))
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func number(at int) float64 {
	value, err := strconv.ParseFloat(os.Args[at], 64)
	check(err)
	return value
}

func seconds(at int) time.Duration {
	return time.Duration(number(at) * float64(time.Second))
}

func say(line string) {
	fmt.Println("ringmq-bench " + line)
}

func (run *load) now() time.Duration {
	return time.Since(run.origin)
}

func (run *load) result(kind string, length time.Duration) {
	encoded, err := run.latencies.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	check(err)
	messages := run.messages.Load()
	say(fmt.Sprintf("%s %d %d %f %d %s", kind, messages, messages*bytes, length.Seconds(), run.errors.Load(), encoded))
}

func (run *load) subject(number int) string {
	return run.name + "." + strconv.Itoa(number%subjects)
}

func (run *load) createStream() {
	_, err := run.stream.CreateStream(context.Background(), jetstream.StreamConfig{
		Name:     run.name,
		Subjects: []string{run.name + ".*"},
		Storage:  jetstream.FileStorage,
	})
	check(err)
}

// window says where the measured part begins and ends, at those times; the channel is closed behind the end.
func (run *load) window(warm, length time.Duration) <-chan struct{} {
	run.from = run.now() + warm
	run.until = run.from + length
	done := make(chan struct{})
	go func() {
		time.Sleep(run.from - run.now())
		say("begin")
		time.Sleep(run.until - run.now())
		say("end")
		close(done)
	}()
	return done
}

func (run *load) answered(due, now time.Duration) {
	if now >= run.from && now < run.until {
		run.messages.Add(1)
	}
	if due >= run.from && due < run.until {
		run.lock.Lock()
		_ = run.latencies.RecordValue(max(1, int64(now-due)))
		run.lock.Unlock()
	}
}

func (run *load) publish(inFlight int, warm, length time.Duration) {
	run.createStream()
	ended := run.window(warm, length)
	var all sync.WaitGroup
	for one := range inFlight {
		all.Add(1)
		go func() {
			defer all.Done()
			body := make([]byte, bytes)
			for next := one; run.now() < run.until; next++ {
				due := run.now()
				ctx, cancel := context.WithTimeout(context.Background(), answerMax)
				_, err := run.stream.Publish(ctx, run.subject(next), body)
				cancel()
				if err != nil {
					run.errors.Add(1)
				} else {
					run.answered(due, run.now())
				}
			}
		}()
	}
	all.Wait()
	<-ended
	run.result("publish", length)
}

func (run *load) endToEnd(rate float64, warm, length time.Duration) {
	run.createStream()
	total := int64(rate * (warm + length).Seconds())
	var delivered atomic.Int64
	consumer, err := run.stream.OrderedConsumer(context.Background(), run.name, jetstream.OrderedConsumerConfig{})
	check(err)
	ended := run.window(warm, length)
	began := run.now()
	reading, err := consumer.Consume(func(message jetstream.Msg) {
		now := run.now()
		run.answered(time.Duration(binary.BigEndian.Uint64(message.Data())), now)
		delivered.Add(1)
	})
	check(err)
	for next := range total {
		due := began + time.Duration(float64(next)*1e9/rate)
		time.Sleep(due - run.now())
		body := make([]byte, bytes)
		binary.BigEndian.PutUint64(body, uint64(due))
		if _, err := run.stream.PublishAsync(run.subject(int(next)), body); err != nil {
			run.errors.Add(1)
		}
	}
	<-ended
	for delivered.Load() < total && run.now() < run.until+answerMax {
		time.Sleep(10 * time.Millisecond)
	}
	reading.Stop()
	run.errors.Add(total - delivered.Load())
	run.result("end-to-end", length)
}

func (run *load) pull() {
	stream, err := run.stream.Stream(context.Background(), run.name)
	check(err)
	info, err := stream.Info(context.Background())
	check(err)
	consumer, err := run.stream.OrderedConsumer(context.Background(), run.name, jetstream.OrderedConsumerConfig{})
	check(err)
	all := int64(info.State.Msgs)
	say("begin")
	began := run.now()
	messages, err := consumer.Messages(jetstream.PullMaxMessages(5000))
	check(err)
	for run.messages.Load() < all {
		asked := run.now()
		message, err := messages.Next(jetstream.NextMaxWait(answerMax))
		if err != nil {
			run.errors.Add(all - run.messages.Load())
			break
		}
		if len(message.Data()) != bytes {
			run.errors.Add(1)
		}
		run.messages.Add(1)
		_ = run.latencies.RecordValue(max(1, int64(run.now()-asked)))
	}
	length := run.now() - began
	say("end")
	run.result("pull", length)
}
