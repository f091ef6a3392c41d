// An edge node that speaks the hub's link over QUIC (docs/protocol.md, "Over QUIC") with quic-go: it opens a link,
// acknowledges what comes and does what lines of its input say. `make check-peers` plays it against a hub.
//
//	upload JSON   sends user data, which the hub answers once it is stored
//	say N         sends N keepalives, a packet each
//	rekey N       the same: quic-go changes keys by itself after the first hundred packets, and has no call for it
//	migrate ADDR  goes on from another address of this machine
//	leave         closes the link
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

const (
	protocol  = "cloudhub-edge/1"
	prefix    = "msg"
	heartbeat = 15 * time.Second
	// Codes that a link is closed with.
	goodbye        = 1000
	brokenProtocol = 1002
)

type options struct {
	hub, ca, certificate, key, node, project string
	withoutIDs                               bool
}

func main() {
	var o options
	flag.StringVar(&o.hub, "hub", "localhost:10001", "HOST:PORT of the hub's QUIC listener")
	flag.StringVar(&o.ca, "ca", "ca.crt", "the CA of the hub's certificate, PEM")
	flag.StringVar(&o.certificate, "cert", "edge.crt", "the node's certificate, PEM")
	flag.StringVar(&o.key, "key", "edge.key", "its key, PEM")
	flag.StringVar(&o.node, "node", "edge-1", "the node's id")
	flag.StringVar(&o.project, "project", "e632aba927ea4ac2b575ec1603d56f10", "the project's id")
	flag.BoolVar(&o.withoutIDs, "without-ids", false, "dial as quic.DialAddr does: connection ids of length zero")
	flag.Parse()
	if err := run(context.Background(), o); err != nil {
		fmt.Println("failed", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	config, err := tlsConfig(o)
	if err != nil {
		return err
	}
	connection, err := dial(ctx, o, config)
	if err != nil {
		return err
	}
	e := &edge{connection: connection, withoutIDs: o.withoutIDs}
	if err := e.open(ctx, o); err != nil {
		return err
	}
	fmt.Println("open")
	go e.receive(ctx)
	go e.beat()
	go e.obey(ctx)
	<-connection.Context().Done()
	var end *quic.ApplicationError
	if cause := context.Cause(connection.Context()); !errors.As(cause, &end) {
		return cause
	}
	fmt.Println("closed", uint64(end.ErrorCode), end.ErrorMessage)
	return nil
}

func tlsConfig(o options) (*tls.Config, error) {
	own, err := tls.LoadX509KeyPair(o.certificate, o.key)
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(o.ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no certificate", o.ca)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{own}, RootCAs: roots, NextProtos: []string{protocol}, MinVersion: tls.VersionTLS13,
	}, nil
}

func dial(ctx context.Context, o options, config *tls.Config) (*quic.Conn, error) {
	// The hub opens one stream of its own: a client that allows none is refused.
	settings := &quic.Config{MaxIncomingStreams: -1, MaxIncomingUniStreams: 1, MaxIdleTimeout: 90 * time.Second}
	if o.withoutIDs {
		return quic.DialAddr(ctx, o.hub, config, settings)
	}
	address, err := net.ResolveUDPAddr("udp", o.hub)
	if err != nil {
		return nil, err
	}
	socket, err := net.ListenUDP("udp", &net.UDPAddr{})
	if err != nil {
		return nil, err
	}
	if config.ServerName, _, err = net.SplitHostPort(o.hub); err != nil {
		return nil, err
	}
	return (&quic.Transport{Conn: socket}).Dial(ctx, address, config, settings)
}

type edge struct {
	connection *quic.Conn
	withoutIDs bool
	up         *quic.SendStream
	writing    sync.Mutex
}

// open requests the link on the control stream, and begins the stream of messages.
func (e *edge) open(ctx context.Context, o options) error {
	control, err := e.connection.OpenStreamSync(ctx)
	if err != nil {
		return err
	}
	headers, err := json.Marshal(map[string][]string{
		"Node_id": {o.node}, "Project_id": {o.project}, "Connectionuse": {"msg"},
	})
	if err != nil {
		return err
	}
	request := Message{ID: rand.Text(), TimestampMillis: time.Now().UnixMilli(), Operation: "header", Content: headers}
	if _, err := control.Write(frame(request)); err != nil {
		return err
	}
	answer, err := readFrame(control)
	if err != nil {
		return err
	}
	if answer.Operation != "ack" {
		return fmt.Errorf("refused: %s", answer.Content)
	}
	if e.up, err = e.connection.OpenUniStreamSync(ctx); err != nil {
		return err
	}
	_, err = e.up.Write([]byte(prefix))
	return err
}

func (e *edge) receive(ctx context.Context) {
	stream, err := e.connection.AcceptUniStream(ctx)
	if err != nil {
		return // The connection is over, which `run` tells.
	}
	// Of a connection that is over nothing is closed: its end is told as it was.
	e.connection.CloseWithError(brokenProtocol, e.read(bufio.NewReader(stream)).Error())
}

// read handles what comes until that is no message any more.
func (e *edge) read(from io.Reader) error {
	begin := make([]byte, len(prefix))
	if _, err := io.ReadFull(from, begin); err != nil {
		return err
	}
	if string(begin) != prefix {
		return fmt.Errorf("no stream of messages begins with %q", begin)
	}
	for {
		message, err := readFrame(from)
		if err != nil {
			return err
		}
		e.handle(message)
	}
}

func (e *edge) handle(message Message) {
	switch {
	case message.Operation == "response" || message.Operation == "error":
		fmt.Println("answered", message.Operation, string(message.Content))
	case message.Source == "cloudhub":
		fmt.Println("told", message.Operation)
	default: // Store it, then say so.
		fmt.Println("received", message.Operation, message.Resource, message.ResourceVersion)
		e.send(Message{
			ParentID: message.ID, Source: "edge", Group: "resource", Operation: "response",
			Resource: message.Resource, Content: []byte(`"OK"`),
		})
	}
}

func (e *edge) send(message Message) {
	message.ID, message.TimestampMillis = rand.Text(), time.Now().UnixMilli()
	e.writing.Lock()
	defer e.writing.Unlock()
	if _, err := e.up.Write(frame(message)); err != nil {
		fmt.Println("not sent", err)
	}
}

func (e *edge) beat() {
	for {
		e.keepalive()
		select {
		case <-e.connection.Context().Done():
			return
		case <-time.After(heartbeat):
		}
	}
}

func (e *edge) keepalive() {
	e.send(Message{
		Source: "websocket", Group: "resource", Operation: "keepalive", Resource: "node", Content: []byte(`"ping"`),
	})
}

func (e *edge) obey(ctx context.Context) {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		command, rest, _ := strings.Cut(lines.Text(), " ")
		switch command {
		case "upload":
			e.send(Message{
				Sync: true, Source: "edge", Group: "user", Operation: "upload", Resource: "readings", Content: []byte(rest),
			})
		case "say", "rekey":
			count, _ := strconv.Atoi(rest)
			for range count {
				e.keepalive()
				time.Sleep(2 * time.Millisecond) // or several share a packet
			}
			fmt.Println(command+"ed", count)
		case "migrate":
			if err := e.migrate(ctx, rest); err != nil {
				fmt.Println("not migrated", err)
			} else {
				fmt.Println("migrated", rest)
			}
		case "leave":
			e.connection.CloseWithError(goodbye, "leaving")
		}
	}
}

func (e *edge) migrate(ctx context.Context, address string) error {
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(address)})
	if err != nil {
		return err
	}
	transport := &quic.Transport{Conn: socket}
	if e.withoutIDs {
		transport.ConnectionIDGenerator = noIDs{} // What comes is read as it is on the first socket.
	}
	path, err := e.connection.AddPath(transport)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := path.Probe(ctx); err != nil {
		return err
	}
	return path.Switch()
}

// noIDs makes connection ids of length zero, as quic.DialAddr has them.
type noIDs struct{}

func (noIDs) GenerateConnectionID() (quic.ConnectionID, error) { return quic.ConnectionID{}, nil }

func (noIDs) ConnectionIDLen() int { return 0 }
