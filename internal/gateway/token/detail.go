// SPDX-License-Identifier: Apache-2.0

package token

import (
	"strconv"
	"strings"
	"time"

	"remit"
)

// targetURN in front of a target's name is the resource URI that every target has.
const targetURN = "urn:remit:target:"

// detail is the one entry of authorization_details.
type detail struct {
	action, target, location     string
	permission, run, stage, call string
	actions                      []string
	ttl                          time.Duration
	args                         remit.Args
}

// parseDetails reads authorization_details. Members are told apart byte by byte; those that are not ours are arguments.
func parseDetails(text string) (detail, error) {
	e := detail{args: remit.Args{}}
	d := remit.NewDecoder(strings.Clone(text)) // arguments live as long as the grant, the form must not
	count := 0
	err := d.List(func() error {
		count++
		return d.Object(func(name string) error { return e.member(&d, name) })
	})
	switch {
	case err != nil:
		return e, badDetails(err.Error())
	//remit:guard S17 TestBadDetails
	case d.End() != nil || count != 1:
		return e, badDetails("exactly one entry")
	case e.action == "" && e.permission == "":
		return e, badDetails("type is missing: it is the action")
	case len(e.actions) > 1 || len(e.actions) == 1 && e.actions[0] != e.action[strings.LastIndexByte(e.action, '.')+1:]:
		return e, badDetails("actions must be the last part of type, or be left out")
	}
	return e, nil
}

func badDetails(text string) error {
	return &problem{code: "invalid_authorization_details", text: "authorization_details: " + text}
}

func (e *detail) member(d *remit.Decoder, name string) (err error) {
	if d.Null() {
		return nil
	}
	switch name {
	case "type":
		e.action, err = d.Text()
	case "target":
		e.target, err = d.Text()
	case "permission":
		e.permission, err = d.Text()
	case "run":
		e.run, err = d.Text()
	case "stage":
		e.stage, err = d.Text()
	case "under":
		e.call, err = d.Text()
	case "ttl":
		e.ttl, err = duration(d)
	case "actions":
		e.actions, err = texts(d)
	case "locations":
		var l []string
		if l, err = texts(d); err == nil && len(l) != 1 {
			return badDetails("exactly one location")
		}
		if err == nil {
			e.location = l[0]
		}
	default:
		e.args[name], err = d.Value()
	}
	return err
}

func texts(d *remit.Decoder) (out []string, err error) {
	err = d.List(func() error {
		s, err := d.Text()
		out = append(out, s)
		return err
	})
	return out, err
}

// duration reads seconds, or a string such as "5m"; more than a day is refused, not cut.
func duration(d *remit.Decoder) (time.Duration, error) {
	v, err := d.Value()
	if err != nil {
		return 0, err
	}
	var t time.Duration
	if v.Kind() == remit.Number {
		var n int64
		n, err = strconv.ParseInt(v.Text(), 10, 32)
		t = time.Duration(n) * time.Second
	} else {
		t, err = time.ParseDuration(v.Text())
	}
	//remit:guard S17 TestBadDetails
	if err != nil || t <= 0 || t > 24*time.Hour {
		return 0, badDetails("ttl is seconds, or a duration such as 5m, of at most a day")
	}
	return t, nil
}

// where settles the target from target, locations and resource (RFC 8707), which must agree. "" is left to the permission.
func (h *Handler) where(e *detail, resource string) (string, error) {
	target := e.target
	for _, uri := range []string{e.location, resource} {
		if uri == "" {
			continue
		}
		name, ok := h.location(uri)
		//remit:guard S17 TestBadDetails
		if !ok || target != "" && name != target {
			return "", &problem{code: "invalid_target", text: "target, locations and resource do not name one known target"}
		}
		target = name
	}
	if target == "" && e.permission == "" {
		return "", badDetails("target is missing")
	}
	return target, nil
}

func (h *Handler) location(uri string) (string, bool) {
	if name, ok := strings.CutPrefix(uri, targetURN); ok {
		return name, name != ""
	}
	if h.cfg.Location == nil {
		return "", false
	}
	return h.cfg.Location(uri)
}
