package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/ioutil"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	kontrol "kontrol/v1"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// elsewhere tells whether another master may do better. The rest is the caller's mistake, and everywhere the same.
func elsewhere(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Canceled, codes.Unknown,
		codes.Internal, codes.Aborted:
		return true
	}
	return false
}

// token is sent with each call. The file is read each time, for a token may be replaced.
type token string

func (file token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	text, err := ioutil.ReadFile(string(file))
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(text))}, nil
}

// RequireTransportSecurity has gRPC refuse to send the token in clear.
func (token) RequireTransportSecurity() bool { return true }

// master is one master, with a connection that is made when it is first used, and again when needed.
type master struct {
	url        string
	proved     bool
	keepalives kontrol.KeepaliveServiceClient
	ensemble   kontrol.EnsembleServiceClient
	actions    kontrol.ActionServiceClient
}

func newMaster(address, ca, tokenFile string) (*master, error) {
	parsed, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	options := []grpc.DialOption{
		// A master whose machine is gone closes nothing: pings find that out. Go sends none more often than each 10 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true,
		}),
		// A master that was down is tried again soon. By default a connection sulks for up to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: 2 * time.Second,
		}),
		// The callback's state takes more than the 4 MiB of the default.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8 << 20)),
	}
	proved := parsed.Scheme == "https"
	if proved {
		config := &tls.Config{}
		if ca != "" {
			pem, err := ioutil.ReadFile(ca)
			if err != nil {
				return nil, err
			}
			config.RootCAs = x509.NewCertPool()
			if !config.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("%s has no certificate", ca)
			}
		}
		options = append(options, grpc.WithTransportCredentials(credentials.NewTLS(config)))
		if tokenFile != "" {
			options = append(options, grpc.WithPerRPCCredentials(token(tokenFile)))
		}
	} else {
		options = append(options, grpc.WithInsecure())
	}
	port := parsed.Port()
	if port == "" {
		port = "8000"
	}
	connection, err := grpc.Dial(net.JoinHostPort(parsed.Hostname(), port), options...)
	if err != nil {
		return nil, err
	}
	return &master{
		url: address, proved: proved,
		keepalives: kontrol.NewKeepaliveServiceClient(connection),
		ensemble:   kontrol.NewEnsembleServiceClient(connection),
		actions:    kontrol.NewActionServiceClient(connection),
	}, nil
}

// tier is the masters of a tier, one of which is in use until it fails.
type tier struct {
	mutex   sync.Mutex
	masters []*master
}

func newTier(urls []string, ca, tokenFile string) (*tier, error) {
	all := &tier{}
	for _, address := range urls {
		one, err := newMaster(address, ca, tokenFile)
		if err != nil {
			return nil, err
		}
		all.masters = append(all.masters, one)
	}
	return all, nil
}

func (t *tier) inUse() *master {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return t.masters[0]
}

// leave says that a master failed: the next one is in use, unless another call went there already.
func (t *tier) leave(failed *master) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if t.masters[0] == failed {
		t.masters = append(t.masters[1:], failed)
	}
}

// untilAccepted tries one master after the other until one accepts, or the context is over.
func (t *tier) untilAccepted(ctx context.Context, attempt func(*master) error) (*master, error) {
	for tries := 1; ; tries++ {
		one := t.inUse()
		err := attempt(one)
		if err == nil || !elsewhere(err) {
			return one, err
		}
		t.leave(one)
		if tries%len(t.masters) == 0 && !pause(ctx, 100*time.Millisecond) || ctx.Err() != nil {
			return one, err
		}
	}
}

// call makes a unary call, of any master.
func (t *tier) call(attempt func(context.Context, *master) error) error {
	const limit = 10 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err := t.untilAccepted(ctx, func(one *master) error {
		ctx, cancel := context.WithTimeout(ctx, limit/3)
		defer cancel()
		return attempt(ctx, one)
	})
	return err
}

// pause waits; false when the context is over before.
func pause(ctx context.Context, long time.Duration) bool {
	timer := time.NewTimer(long)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
