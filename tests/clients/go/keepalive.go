package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	mathrand "math/rand"
	"os"
	"sync"
	"time"

	kontrol "kontrol/v1"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

type event map[string]interface{}

var output sync.Mutex

// say prints an event: every line that a client prints is a JSON object.
func say(what event) {
	output.Lock()
	defer output.Unlock()
	// It has nothing that JSON has not; a reader that is gone ends the program.
	_ = json.NewEncoder(os.Stdout).Encode(what)
}

// pod is what the keepalives say.
type pod struct{ said *kontrol.PingRequest }

func newPod(app, id, ip, role string) (pod, error) {
	// Any JSON value.
	payload, err := structpb.NewValue(map[string]interface{}{"client": "go"})
	if err != nil {
		return pod{}, err
	}
	nonce := make([]byte, 8)
	if _, err := rand.Read(nonce); err != nil {
		return pod{}, err
	}
	return pod{&kontrol.PingRequest{
		App: app, Id: id, Ip: ip, Role: role, Payload: payload,
		// Another nonce is another start of the same pod.
		Nonce:  hex.EncodeToString(nonce),
		Labels: map[string]string{"app": app, "role": role},
	}}, nil
}

func (p pod) ping(beat uint64, down bool) *kontrol.PingRequest {
	ping := proto.Clone(p.said).(*kontrol.PingRequest)
	ping.Beat, ping.Down = beat, down
	return ping
}

// way is how a keepalive is sent: within the context, with so much time for each master.
type way interface {
	send(ctx context.Context, ping *kontrol.PingRequest, limit time.Duration) (*master, *kontrol.PingResponse, error)
}

// unary sends a keepalive as a call of its own.
type unary struct{ tier *tier }

func (u unary) send(ctx context.Context, ping *kontrol.PingRequest, limit time.Duration) (*master, *kontrol.PingResponse, error) {
	var answer *kontrol.PingResponse
	by, err := u.tier.untilAccepted(ctx, func(one *master) (err error) {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		answer, err = one.keepalives.Ping(ctx, ping)
		return err
	})
	return by, answer, err
}

// stream sends keepalives over one stream: whole at first, and then a number is enough.
type stream struct {
	tier         *tier
	master       *master
	open         kontrol.KeepaliveService_PingStreamClient
	cancel       context.CancelFunc
	beats, again int
}

func (s *stream) send(ctx context.Context, ping *kontrol.PingRequest, limit time.Duration) (*master, *kontrol.PingResponse, error) {
	var answer *kontrol.PingResponse
	by, err := s.tier.untilAccepted(ctx, func(one *master) (err error) {
		answer, err = s.attempt(one, ping, limit)
		if err != nil && s.open != nil {
			// Also frees it: a stream that is not read to its end is kept until its context is cancelled.
			s.cancel()
			s.open = nil
		}
		return err
	})
	return by, answer, err
}

func (s *stream) attempt(one *master, ping *kontrol.PingRequest, limit time.Duration) (*kontrol.PingResponse, error) {
	whole := &kontrol.PingStreamRequest{Kind: &kontrol.PingStreamRequest_Ping{Ping: ping}}
	if s.open == nil || s.master != one {
		if s.open != nil {
			s.cancel()
		}
		ctx, cancel := context.WithCancel(context.Background())
		open, err := one.keepalives.PingStream(ctx)
		if err != nil {
			cancel()
			return nil, err
		}
		s.master, s.open, s.cancel = one, open, cancel
		return s.taken(s.exchange(whole, limit))
	}
	s.beats++
	short := &kontrol.PingStreamRequest{Kind: &kontrol.PingStreamRequest_Beat{Beat: ping.Beat}}
	answer, err := s.exchange(short, limit)
	if err == nil && answer.GetAgain() {
		// The master can't tell what still holds: the whole keepalive, at once.
		s.again++
		answer, err = s.exchange(whole, limit)
	}
	return s.taken(answer, err)
}

func (s *stream) exchange(request *kontrol.PingStreamRequest, limit time.Duration) (*kontrol.PingStreamResponse, error) {
	// A stream has no deadline for a message; without this one, a master that hangs would hold the pod.
	defer time.AfterFunc(limit, s.cancel).Stop()
	// What Send tells of a broken stream is io.EOF; Recv tells the reason.
	_ = s.open.Send(request)
	return s.open.Recv()
}

func (s *stream) taken(answer *kontrol.PingStreamResponse, err error) (*kontrol.PingResponse, error) {
	if err != nil {
		return nil, status.Error(status.Code(err), err.Error())
	}
	// A refusal does not end the stream.
	if refused := answer.GetError(); refused != nil {
		return nil, status.Error(codes.Code(refused.Code), refused.Message)
	}
	return answer.GetResponse(), nil
}

// answered is the master that accepted the last keepalive, and how many were accepted so far.
type answered struct {
	count  int
	master *master
	key    string
}

// keepalives sends one each interval that the last answer told, until it is stopped; then it says goodbye.
type keepalives struct {
	tier     *tier
	pod      pod
	way      way
	beat     uint64
	sent     int
	lost     int
	interval time.Duration
	slowest  time.Duration
	// hurry has the next one sent at once.
	hurry chan struct{}

	mutex sync.Mutex
	// changed is closed when a keepalive was accepted.
	changed chan struct{}
	last    answered
}

func newKeepalives(tier *tier, pod pod, way way) *keepalives {
	return &keepalives{
		tier: tier, pod: pod, way: way,
		// Until a master tells; long enough for a first connection on a busy machine.
		interval: 5 * time.Second,
		hurry:    make(chan struct{}, 1),
		changed:  make(chan struct{}),
	}
}

// look tells who answered last, and what is closed when that changes.
func (k *keepalives) look() (answered, chan struct{}) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	return k.last, k.changed
}

func (k *keepalives) run(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		k.once()
		// A little luck keeps pods from reporting in step.
		due := time.Duration(float64(k.interval) * (0.9 + 0.1*mathrand.Float64()))
		timer := time.NewTimer(due - time.Since(began))
		select {
		case <-timer.C:
		case <-k.hurry:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func (k *keepalives) once() {
	k.beat++
	k.sent++
	ctx, cancel := context.WithTimeout(context.Background(), k.interval)
	defer cancel()
	began := time.Now()
	// Time for each of some masters within an interval.
	by, answer, err := k.way.send(ctx, k.pod.ping(k.beat, false), k.interval/3)
	if err != nil {
		// The pod lives on: it reports again. FAILED_PRECONDITION is for a person to read.
		k.lost++
		say(event{"lost": k.beat, "error": status.Convert(err).Message()})
		return
	}
	if took := time.Since(began); took > k.slowest {
		k.slowest = took
	}
	if told := answer.Interval.AsDuration(); told > 0 {
		k.interval = told
	}
	say(event{"beat": k.beat, "master": by.url, "seq": answer.Seq})
	k.mutex.Lock()
	defer k.mutex.Unlock()
	k.last = answered{count: k.last.count + 1, master: by, key: answer.Key}
	close(k.changed)
	k.changed = make(chan struct{})
}

// goodbye leaves the roster at once, instead of when the TTL is over.
func (k *keepalives) goodbye() error {
	k.beat++
	return k.tier.call(func(ctx context.Context, one *master) error {
		_, err := one.keepalives.Ping(ctx, k.pod.ping(k.beat, true))
		return err
	})
}

func (k *keepalives) summary() {
	summary := event{"sent": k.sent, "accepted": k.sent - k.lost, "lost": k.lost, "slowest_seconds": k.slowest.Seconds(), "beats": 0, "again": 0}
	if way, ok := k.way.(*stream); ok {
		summary["beats"], summary["again"] = way.beats, way.again
	}
	say(summary)
}
