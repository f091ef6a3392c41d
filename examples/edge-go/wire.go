package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A frame is ten bytes of header (version u32, type u8, flags u8, payload length u32; big-endian) and a payload,
// which is an EdgeMessage (protos/cloudhub/v1/edge.proto).
const (
	frameVersion  = 0x01010100
	frameMessage  = 1
	headerBytes   = 10
	mostDownBytes = 16 << 20
)

// Message has the fields of an EdgeMessage that this client uses.
type Message struct {
	ID, ParentID    string
	TimestampMillis int64
	Sync            bool
	ResourceVersion string
	Source, Group   string
	Operation       string
	Resource        string
	Content         []byte
}

func frame(message Message) []byte {
	payload := message.encode()
	head := make([]byte, headerBytes, headerBytes+len(payload))
	binary.BigEndian.PutUint32(head, frameVersion)
	head[4] = frameMessage
	binary.BigEndian.PutUint32(head[6:], uint32(len(payload)))
	return append(head, payload...)
}

func readFrame(from io.Reader) (Message, error) {
	var head [headerBytes]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return Message{}, err
	}
	if binary.BigEndian.Uint32(head[:]) != frameVersion || head[4] != frameMessage || head[5] != 0 {
		return Message{}, fmt.Errorf("no frame begins with % x", head)
	}
	size := binary.BigEndian.Uint32(head[6:])
	if size > mostDownBytes {
		return Message{}, fmt.Errorf("a frame of %d bytes", size)
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(from, payload); err != nil {
		return Message{}, err
	}
	return decode(payload)
}

// Protobuf: a field is a varint of number and kind, and a varint or a length and as many bytes.
const (
	kindVarint = 0
	kindFixed8 = 1
	kindBytes  = 2
	kindFixed4 = 5
)

func (m Message) encode() []byte {
	var header, router, out []byte
	header = putText(header, 1, m.ID)
	header = putText(header, 2, m.ParentID)
	if m.TimestampMillis != 0 { // sint64: zigzag
		header = putNumber(header, 3, uint64(m.TimestampMillis<<1)^uint64(m.TimestampMillis>>63))
	}
	if m.Sync {
		header = putNumber(header, 4, 1)
	}
	header = putText(header, 6, m.ResourceVersion)
	router = putText(router, 1, m.Source)
	router = putText(router, 2, m.Group)
	router = putText(router, 3, m.Operation)
	router = putText(router, 4, m.Resource)
	out = putText(out, 1, string(header))
	out = putText(out, 2, string(router))
	return putText(out, 3, string(m.Content))
}

func putNumber(out []byte, field int, value uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(out, uint64(field)<<3|kindVarint), value)
}

func putText(out []byte, field int, value string) []byte {
	if value == "" {
		return out
	}
	out = binary.AppendUvarint(binary.AppendUvarint(out, uint64(field)<<3|kindBytes), uint64(len(value)))
	return append(out, value...)
}

func decode(payload []byte) (Message, error) {
	var m Message
	err := fields(payload, func(field int, number uint64, value []byte) error {
		switch field {
		case 1:
			return fields(value, func(field int, number uint64, value []byte) error {
				switch field {
				case 1:
					m.ID = string(value)
				case 2:
					m.ParentID = string(value)
				case 3:
					m.TimestampMillis = int64(number>>1) ^ -int64(number&1)
				case 4:
					m.Sync = number != 0
				case 6:
					m.ResourceVersion = string(value)
				}
				return nil
			})
		case 2:
			return fields(value, func(field int, _ uint64, value []byte) error {
				switch field {
				case 1:
					m.Source = string(value)
				case 2:
					m.Group = string(value)
				case 3:
					m.Operation = string(value)
				case 4:
					m.Resource = string(value)
				}
				return nil
			})
		case 3:
			m.Content = value
		}
		return nil // A field that is not known: newer hubs may send more.
	})
	return m, err
}

var errCut = errors.New("the message is cut")

func fields(data []byte, each func(field int, number uint64, value []byte) error) error {
	for len(data) > 0 {
		tag, n := binary.Uvarint(data)
		if n <= 0 {
			return errCut
		}
		data = data[n:]
		var number uint64
		var value []byte
		size := 0
		switch tag & 7 {
		case kindVarint:
			number, size = binary.Uvarint(data)
			if size <= 0 {
				return errCut
			}
		case kindFixed8:
			size = 8
		case kindFixed4:
			size = 4
		case kindBytes:
			length, n := binary.Uvarint(data)
			if n <= 0 || length > uint64(len(data)-n) {
				return errCut
			}
			size = n + int(length)
			value = data[n:size]
		default:
			return fmt.Errorf("a field of kind %d", tag&7)
		}
		if size > len(data) {
			return errCut
		}
		if err := each(int(tag>>3), number, value); err != nil {
			return err
		}
		data = data[size:]
	}
	return nil
}
