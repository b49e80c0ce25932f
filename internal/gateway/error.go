// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"encoding/json"
	"errors"
	"net/http"

	"remit"
)

var statusOf = map[remit.Code]int{
	remit.CodeInvalid: 400, remit.CodeUnauthenticated: 401, remit.CodeForbidden: 403, remit.CodeDenied: 403, remit.CodeHeld: 409,
	remit.CodeNotFound: 404, remit.CodeConflict: 409, remit.CodeUnavailable: 503, remit.CodeExhausted: 429, remit.CodeInternal: 500,
}

// WriteError writes err as the management API has it: {code, message, hint, id}. The cause of a fault stays behind.
func WriteError(w http.ResponseWriter, err error) {
	var e *remit.Error
	if !errors.As(err, &e) || e.Code == remit.CodeInternal {
		e = &remit.Error{Code: remit.CodeInternal, Msg: "a fault in the server", Hint: "its log says more"}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(statusOf[e.Code])
	_ = json.NewEncoder(w).Encode(e)
}
