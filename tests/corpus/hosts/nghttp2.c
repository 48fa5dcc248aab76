/* CVE-2026-27135: an application that ends the session from its callback for a request was not obeyed: the frames after
 * the request were handled as ever (and one of a wrong size then met an assertion). Is the next frame still handled? */
#include "host.h"

#include <nghttp2/nghttp2.h>

static const unsigned char REQUEST[] =
	NGHTTP2_CLIENT_MAGIC
	"\0\0\0\x04\0\0\0\0\0"                              /* SETTINGS */
	"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01x" /* HEADERS: GET http / of x */
	"\0\0\x08\x06\0\0\0\0\0abcdefgh";                   /* PING */

static int requests, pings;

static int received(nghttp2_session *session, const nghttp2_frame *frame, void *unused)
{
	(void)unused;
	pings += frame->hd.type == NGHTTP2_PING;
	if (frame->hd.type != NGHTTP2_HEADERS)
		return 0;
	requests++;
	return nghttp2_session_terminate_session(session, NGHTTP2_NO_ERROR);
}

static const char *verdict(void)
{
	nghttp2_session_callbacks *callbacks;
	nghttp2_session *session;

	requests = pings = 0;
	nghttp2_session_callbacks_new(&callbacks);
	nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, received);
	nghttp2_session_server_new(&session, callbacks, NULL);
	nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, NULL, 0);
	nghttp2_session_mem_recv(session, REQUEST, sizeof REQUEST - 1);
	nghttp2_session_del(session);
	nghttp2_session_callbacks_del(callbacks);
	if (requests != 1)
		return "ODD: the request is not handled";
	return pings != 0 ? "VULNERABLE" : "FIXED";
}
