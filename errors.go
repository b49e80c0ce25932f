// SPDX-License-Identifier: Apache-2.0

package remit

import "errors"

// Code is one of a closed list; callers tell cases apart by it, never by text.
type Code string

// The closed list of codes. A denial is an answer, not an error; CodeDenied exists for callers that can only take an error.
const (
	CodeInvalid         Code = "invalid"         // the request or file is malformed; nothing was done
	CodeUnauthenticated Code = "unauthenticated" // the caller did not prove who it is
	CodeForbidden       Code = "forbidden"       // the caller is known but has no role or right for this operation
	CodeDenied          Code = "denied"          // policy said no
	CodeHeld            Code = "held"            // policy said: not before a person agrees
	CodeNotFound        Code = "not_found"       // no such object, or none that the caller may see
	CodeConflict        Code = "conflict"        // the state moved between reading and writing (S11)
	CodeUnavailable     Code = "unavailable"     // a part that is needed does not answer; try again
	CodeExhausted       Code = "exhausted"       // a quota or size limit
	CodeInternal        Code = "internal"        // a fault of ours; details are in the operator's log only
)

// Error crosses a boundary: Msg and Hint are for the caller, Cause is for the operator's log and never leaves the process.
type Error struct {
	Code  Code   `json:"code"`
	Msg   string `json:"message"`
	Hint  string `json:"hint,omitempty"` // the next step, when the reader can act
	ID    string `json:"id,omitempty"`   // decision, grant or request this is about
	Cause error  `json:"-"`
}

// Error returns Msg, and Cause where there is one.
func (e *Error) Error() string {
	if e.Cause != nil {
		return e.Msg + ": " + e.Cause.Error()
	}
	return e.Msg
}

// Unwrap returns Cause.
func (e *Error) Unwrap() error { return e.Cause }

// ErrOtherAgent and ErrOtherHolder are causes of a good run token's refusal.
var (
	ErrOtherAgent  = errors.New("it was given to another agent")
	ErrOtherHolder = errors.New("it is bound to another holder")
)

// CodeOf returns the code of the first *Error in err's chain, else CodeInternal; "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeInternal
}
