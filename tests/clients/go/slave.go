package main

// A minimal slave: the channel over which masters send commands, beside the keepalives on the same connection.
//
// What holds, as proto/kontrol/v1/action.proto asks for it: no action runs twice in this incarnation; what a master has not
// taken is kept and told again on the next channel, until it says `forget`; no more output is on its way than the window
// allows.

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	kontrol "kontrol/v1"

	"google.golang.org/grpc/status"
)

const (
	// mostOutput of each stream is passed on, whatever the order says; it stays in memory until the end was taken.
	mostOutput = 1 << 20
	piece      = 16 << 10
	// mostPieces are sent before a credit: it comes after 8, and no more than 32 may be on their way.
	mostPieces = 16
	// soon a keepalive follows the end of a channel; the time doubles while none opens.
	soon = 200 * time.Millisecond
)

// One of each for standard output and standard error.
type two [2]int

var streams = [2]kontrol.Stream{kontrol.Stream_STREAM_STDOUT, kontrol.Stream_STREAM_STDERR}

// action is a command, and what there is to tell of it. The slave's lock guards it.
type action struct {
	id                 string
	window, most       int
	output             [2][]byte
	written            two
	taken, sent        two
	pieces             int
	started            bool
	result             *kontrol.ActionResult
	toldStart, toldEnd bool
	cancel             context.CancelFunc
	cancelled          context.Context
}

// resume says that a new channel goes on from here: the rest is told again.
func (a *action) resume(taken two) {
	a.taken, a.sent, a.pieces = taken, taken, 0
	a.toldStart, a.toldEnd = false, false
}

// next is the next message, if there is one that may be sent: the start, output as far as the window goes, the end.
func (a *action) next() *kontrol.AttachRequest {
	if a.started && !a.toldStart {
		a.toldStart = true
		return &kontrol.AttachRequest{Event: &kontrol.AttachRequest_Started_{
			Started: &kontrol.AttachRequest_Started{ActionId: a.id}}}
	}
	everything := true
	for at, output := range a.output {
		room := a.window - (a.sent[0] + a.sent[1] - a.taken[0] - a.taken[1])
		data := output[a.sent[at]:]
		everything = everything && len(data) == 0
		if data = data[:least(len(data), piece, room)]; len(data) > 0 && a.pieces < mostPieces {
			message := &kontrol.AttachRequest_Output{
				ActionId: a.id, Stream: streams[at], Offset: uint64(a.sent[at]), Data: data}
			a.sent[at] += len(data)
			a.pieces++
			return &kontrol.AttachRequest{Event: &kontrol.AttachRequest_Output_{Output: message}}
		}
	}
	if a.result != nil && everything && !a.toldEnd {
		a.toldEnd = true
		return &kontrol.AttachRequest{Event: &kontrol.AttachRequest_Finished_{
			Finished: &kontrol.AttachRequest_Finished{ActionId: a.id, Result: a.result}}}
	}
	return nil
}

func least(first int, others ...int) int {
	for _, other := range others {
		if other < first {
			first = other
		}
	}
	return first
}

func (a *action) end(outcome kontrol.Outcome, code, signal int, why string) {
	a.result = &kontrol.ActionResult{
		Outcome: outcome, ExitCode: int32(code), Signal: int32(signal), Error: why,
		StdoutBytes: uint64(a.written[0]), StderrBytes: uint64(a.written[1]),
		Truncated: a.written[0] > a.most || a.written[1] > a.most,
	}
	say(event{"action": a.id, "outcome": outcome.String(), "exit_code": code})
}

// slave runs the commands of a pod.
type slave struct {
	keepalives  *keepalives
	attachments uint64
	running     sync.WaitGroup

	mutex sync.Mutex
	// actions that are at hand, all that ever were, and those that were cancelled before they came.
	actions          map[string]*action
	known, cancelled map[string]bool
	// asked are those that this channel wants to hear of, and what else is to be answered.
	asked    map[string]bool
	replies  []*kontrol.AttachRequest
	welcomed bool
	// bell rings when there is something to tell.
	bell chan struct{}
}

func newSlave(keepalives *keepalives) *slave {
	return &slave{
		keepalives: keepalives, actions: map[string]*action{}, known: map[string]bool{}, cancelled: map[string]bool{},
		bell: make(chan struct{}, 1),
	}
}

func (s *slave) ring() {
	select {
	case s.bell <- struct{}{}:
	default:
	}
}

// run opens the channel at the master that answered a keepalive, and again when it breaks or the keepalives moved.
func (s *slave) run(ctx context.Context) {
	seen, haste := 0, soon
	for ctx.Err() == nil {
		last, changed := s.keepalives.look()
		if last.count <= seen {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		open, cancel := context.WithCancel(ctx)
		go s.leaveWithKeepalives(open, last.master, cancel)
		err := s.attach(open, last.master, last.key)
		cancel()
		now, _ := s.keepalives.look()
		if ctx.Err() != nil || now.master != last.master {
			continue
		}
		say(event{"detached": last.master.url, "error": status.Convert(err).Message()})
		// A pod whose channel ended and that is not heard of within three seconds counts as LOST: so a keepalive soon, which
		// finds another master where this one is gone. The channel follows it there.
		seen = now.count
		if haste *= 2; s.welcomed {
			haste = soon
		} else if haste > 2*time.Second {
			haste = 2 * time.Second
		}
		pause(ctx, haste)
		select {
		case s.keepalives.hurry <- struct{}{}:
		default:
		}
	}
}

// leaveWithKeepalives ends the channel once another master answers keepalives.
func (s *slave) leaveWithKeepalives(ctx context.Context, from *master, cancel context.CancelFunc) {
	for {
		last, changed := s.keepalives.look()
		if last.master != from {
			cancel()
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (s *slave) attach(ctx context.Context, one *master, key string) error {
	s.attachments++
	hello := &kontrol.AttachRequest_Hello{Key: key, Nonce: s.keepalives.pod.said.Nonce, Attachment: s.attachments}
	s.mutex.Lock()
	s.asked, s.replies, s.welcomed = map[string]bool{}, nil, false
	for id := range s.actions {
		hello.Actions = append(hello.Actions, id)
	}
	s.mutex.Unlock()
	channel, err := one.actions.Attach(ctx)
	if err != nil {
		return err
	}
	if err := channel.Send(&kontrol.AttachRequest{Event: &kontrol.AttachRequest_Hello_{Hello: hello}}); err == nil {
		go s.tell(ctx, channel)
	}
	for {
		order, err := channel.Recv()
		if err != nil {
			return err
		}
		s.take(order, one, key)
		s.ring()
	}
}

// tell sends what there is to tell. It alone sends: a stream is not for two goroutines to send on.
func (s *slave) tell(ctx context.Context, channel kontrol.ActionService_AttachClient) {
	for {
		for message := s.next(); message != nil; message = s.next() {
			if channel.Send(message) != nil {
				return
			}
		}
		select {
		case <-s.bell:
		case <-ctx.Done():
			return
		}
	}
}

func (s *slave) next() *kontrol.AttachRequest {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if len(s.replies) > 0 {
		reply := s.replies[0]
		s.replies = s.replies[1:]
		return reply
	}
	for id := range s.asked {
		if one := s.actions[id]; one != nil {
			if message := one.next(); message != nil {
				return message
			}
		}
	}
	return nil
}

// take takes an order.
func (s *slave) take(order *kontrol.AttachResponse, one *master, key string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	unknown := func(id string) {
		s.replies = append(s.replies, &kontrol.AttachRequest{Event: &kontrol.AttachRequest_Unknown_{
			Unknown: &kontrol.AttachRequest_Unknown{ActionId: id}}})
	}
	switch order := order.Order.(type) {
	case *kontrol.AttachResponse_Welcome_:
		s.welcomed = true
		say(event{"attached": one.url})
	case *kontrol.AttachResponse_Run_:
		id := order.Run.ActionId
		s.asked[id] = true
		if at := s.actions[id]; at != nil {
			at.resume(at.taken)
		} else {
			s.begin(order.Run, one, key)
		}
	case *kontrol.AttachResponse_Resume_:
		id := order.Resume.ActionId
		if at := s.actions[id]; at != nil {
			s.asked[id] = true
			at.resume(two{int(order.Resume.StdoutOffset), int(order.Resume.StderrOffset)})
		} else {
			unknown(id)
		}
	case *kontrol.AttachResponse_Credit_:
		if at := s.actions[order.Credit.ActionId]; at != nil {
			at.taken = two{int(order.Credit.StdoutOffset), int(order.Credit.StderrOffset)}
			at.pieces = 0
		}
	case *kontrol.AttachResponse_Cancel_:
		id := order.Cancel.ActionId
		if at := s.actions[id]; at != nil {
			at.cancel()
		} else {
			s.cancelled[id] = true
			unknown(id)
		}
	case *kontrol.AttachResponse_Forget_:
		delete(s.actions, order.Forget.ActionId)
	}
}

// begin takes a new action: it runs, unless it ran before, was cancelled before it came, or nobody proved who sends it.
func (s *slave) begin(run *kontrol.AttachResponse_Run, one *master, key string) {
	new := &action{id: run.ActionId, window: int(run.Window), most: mostOutput}
	if new.window == 0 {
		new.window = 64 << 10
	}
	if run.MaxOutput > 0 && run.MaxOutput < mostOutput {
		new.most = int(run.MaxOutput)
	}
	new.cancelled, new.cancel = context.WithCancel(context.Background())
	s.actions[new.id] = new
	switch {
	case s.known[new.id]:
		new.end(kontrol.Outcome_OUTCOME_LOST, -1, 0, "it ran here before")
	case s.cancelled[new.id]:
		new.end(kontrol.Outcome_OUTCOME_CANCELLED, -1, 0, "it was cancelled before it came")
	case !one.proved:
		new.end(kontrol.Outcome_OUTCOME_REFUSED, -1, 0, "this slave runs commands only over TLS")
	default:
		s.running.Add(1)
		go s.execute(new, run, key)
	}
	s.known[new.id] = true
}

// sink takes in one stream of a command: it keeps as much as is passed on.
type sink struct {
	slave  *slave
	action *action
	stream int
}

func (o sink) Write(data []byte) (int, error) {
	o.slave.mutex.Lock()
	defer o.slave.mutex.Unlock()
	kept := &o.action.output[o.stream]
	o.action.written[o.stream] += len(data)
	*kept = append(*kept, data[:least(len(data), o.action.most-len(*kept))]...)
	o.slave.ring()
	return len(data), nil
}

// execute runs the command to its end.
func (s *slave) execute(one *action, run *kontrol.AttachResponse_Run, key string) {
	defer s.running.Done()
	defer s.ring()
	argv := run.Command.Argv
	if len(argv) == 0 {
		argv = []string{"/bin/sh", "-c", run.Command.Shell}
	}
	command := exec.Command(argv[0], argv[1:]...)
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "KONTROL_") && !strings.HasPrefix(variable, "NAMESPACE=") {
			command.Env = append(command.Env, variable)
		}
	}
	for name, value := range run.Command.Env {
		command.Env = append(command.Env, name+"="+value)
	}
	command.Env = append(command.Env, "KONTROL_ACTION="+one.id, "KONTROL_KEY="+key, "KONTROL_ID="+s.keepalives.pod.said.Id)
	if input := run.Command.InputJson; len(input) > 0 {
		command.Stdin = io.MultiReader(bytes.NewReader(input), strings.NewReader("\n"))
		if len(input) < 128<<10-16 {
			command.Env = append(command.Env, "INPUT="+string(input))
		}
	}
	command.Stdout, command.Stderr = sink{s, one, 0}, sink{s, one, 1}
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		s.mutex.Lock()
		defer s.mutex.Unlock()
		one.end(kontrol.Outcome_OUTCOME_REFUSED, -1, 0, err.Error())
		return
	}
	s.mutex.Lock()
	one.started = true
	s.mutex.Unlock()
	s.ring()

	limit := run.Timeout.AsDuration()
	if limit == 0 {
		limit = time.Minute
	}
	ended := make(chan struct{})
	go func() {
		// Its error says no more than the state does.
		_ = command.Wait()
		close(ended)
	}()
	outcome, why := kontrol.Outcome_OUTCOME_EXITED, ""
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-ended:
	case <-one.cancelled.Done():
		outcome, why = kontrol.Outcome_OUTCOME_CANCELLED, "it was cancelled"
	case <-timer.C:
		outcome, why = kontrol.Outcome_OUTCOME_TIMED_OUT, "it took longer than "+limit.String()
	}
	// The group: whatever else it started ends with it.
	if outcome != kontrol.Outcome_OUTCOME_EXITED {
		_ = syscall.Kill(-command.Process.Pid, syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(2 * time.Second):
		}
	}
	_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
	<-ended
	s.mutex.Lock()
	defer s.mutex.Unlock()
	code, signal := command.ProcessState.ExitCode(), 0
	if state := command.ProcessState.Sys().(syscall.WaitStatus); state.Signaled() {
		signal = int(state.Signal())
		code = 128 + signal
	}
	one.end(outcome, code, signal, why)
}

// stop ends what runs.
func (s *slave) stop() {
	s.mutex.Lock()
	for _, one := range s.actions {
		one.cancel()
	}
	s.mutex.Unlock()
	s.running.Wait()
}
