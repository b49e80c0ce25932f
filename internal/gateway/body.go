// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"remit"
)

// MaxBody is how many bytes the body of a request for a decision or a token may have.
const MaxBody = 64 << 10

// ReadBody reads a request's whole body, of at most limit bytes.
func ReadBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	//remit:guard S35 TestBody
	if err != nil {
		return nil, &remit.Error{Code: remit.CodeExhausted, Msg: fmt.Sprintf("the request's body cannot be read, or is larger than %d bytes", limit)}
	}
	return body, nil
}

// DecodeBody reads one JSON value strictly into v: no member that v does not have, and nothing after it.
func DecodeBody(body []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return &remit.Error{Code: remit.CodeInvalid, Msg: "the request's body: " + err.Error()}
	}
	//remit:guard S29 TestBody
	if _, err := dec.Token(); err != io.EOF {
		return &remit.Error{Code: remit.CodeInvalid, Msg: "the request's body holds more than one value"}
	}
	return nil
}
